package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/agent"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/relay"
)

func newTunnelCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tunnel",
		Short: "Run the tunnel's agent, and manage devices",
		Long: "Without a further word it runs the section agent of the configuration and nothing else of it.\n" +
			"At the relay: key --relay, token, devices, remove. At a site: enrol, key, status.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			file := configFile(cmd)
			load := func() (*config, error) {
				cfg, err := loadConfig(file)
				if err == nil && len(cfg.Agent.Relays) == 0 {
					err = &configError{file, []fault{{1, "agent.relays", "at least one is needed"}}}
				}
				return cfg, err
			}
			cfg, err := load()
			if err != nil {
				return err
			}
			cfg.only = "agent"
			return runLogged(cmd, cfg, load, 0)
		},
	}
	cmd.AddCommand(newTunnelKeyCmd(), newTunnelTokenCmd(), newTunnelEnrolCmd(), newTunnelDevicesCmd(), newTunnelRemoveCmd(), newTunnelStatusCmd())
	cmd.AddCommand(newTunnelSendCmd(), newTunnelInboxCmd(), newTunnelMailboxesCmd(), newTunnelPurgeCmd())
	return cmd
}

func newTunnelKeyCmd() *cobra.Command {
	var ofRelay bool
	cmd := &cobra.Command{
		Use: "key", Short: "Print the ID of this device, whose key is made if there is none", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(configFile(cmd))
			if err != nil {
				return err
			}
			k, err := cfg.tunnelKey(ofRelay)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), k.ID())
			return err
		},
	}
	cmd.Flags().BoolVar(&ofRelay, "relay", false, "that of the relay instead")
	return cmd
}

// tunnelKey reads or makes the relay's key, or the agent's.
func (c *config) tunnelKey(ofRelay bool) (device.Key, error) {
	if c.State.Dir != "" {
		if err := os.MkdirAll(c.State.Dir, 0o700); err != nil {
			return device.Key{}, err
		}
	}
	if ofRelay {
		return loadKey(c.relayKeyFile(), zap.NewNop())
	}
	return loadKey(c.deviceKeyFile(), zap.NewNop())
}

// tunnelStore opens the relay's store of tokens and devices.
func (c *config) tunnelStore() (*device.Store, error) {
	if c.State.Dir == "" {
		return nil, errors.New("state.dir is empty: there is no place for tokens and devices")
	}
	if err := os.MkdirAll(c.State.Dir, 0o700); err != nil {
		return nil, err
	}
	return device.OpenStore(c.tunnelDir())
}

func newTunnelTokenCmd() *cobra.Command {
	var groups []string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "token NAME", Short: "At the relay: print a token with which one new device may enrol itself under a name, once", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadConfig(configFile(cmd))
			if err != nil {
				return err
			}
			k, err := cfg.tunnelKey(true)
			if err != nil {
				return err
			}
			store, err := cfg.tunnelStore()
			if err != nil {
				return err
			}
			t, err := store.Add(k.ID(), args[0], groups, time.Now(), ttl)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), t)
			return err
		},
	}
	cmd.Flags().StringSliceVar(&groups, "groups", nil, "`GROUP,GROUP` that the device is in")
	cmd.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "how long the token is good")
	return cmd
}

func newTunnelEnrolCmd() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use: "enrol TOKEN", Short: "At a site: have this device admitted by a relay, and print what its configuration needs", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := device.ParseToken(args[0])
			if err != nil {
				return err
			}
			cfg, err := loadEnrolConfig(cmd)
			if err != nil {
				return err
			}
			k, err := cfg.tunnelKey(false)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			name, err := enrol(ctx, cfg, k, address, t)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "# this device is %s: %s\nagent:\n  relays: [{address: %s, id: %s}]\n", name, k.ID(), address, t.Relay)
			return err
		},
	}
	cmd.Flags().StringVar(&address, "relay", "", "`HOST` or HOST:PORT of the relay")
	cobra.CheckErr(cmd.MarkFlagRequired("relay"))
	return cmd
}

// loadEnrolConfig reads the configuration, which may not be there yet: then state.dir has its default.
func loadEnrolConfig(cmd *cobra.Command) (*config, error) {
	file := configFile(cmd)
	cfg := defaultConfig()
	if _, err := os.Stat(file); err != nil {
		return &cfg, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	// What is not in order yet does not matter here: the section agent is about to be written.
	if _, faults := decodeYAML(data, &cfg); len(faults) > 0 {
		return nil, &configError{file, faults}
	}
	return &cfg, nil
}

// enrol shows the token to the relay and returns the name that the device now has.
func enrol(ctx context.Context, cfg *config, k device.Key, address string, t device.Token) (string, error) {
	proxy, err := siteProxy(cfg, zap.NewNop())
	if err != nil {
		return "", err
	}
	d, err := newRungs(k, address, t.Relay, zap.NewNop())
	if err != nil {
		return "", err
	}
	d.Proxy, d.PortHTTP = proxy, cfg.Agent.PortHTTP
	if len(cfg.Agent.Rungs) > 0 {
		d.Rungs = cfg.Agent.Rungs
	}
	c, err := d.DialEnrol(ctx)
	if err != nil {
		return "", fmt.Errorf("the relay is not reached, or refuses this device: %w", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	return showToken(c.Conn, t)
}

// showToken speaks the enrolment on an open connection.
func showToken(c net.Conn, t device.Token) (string, error) {
	if _, err := c.Write(t.Secret[:]); err != nil {
		return "", err
	}
	var head [2]byte
	if _, err := io.ReadFull(c, head[:1]); err != nil {
		return "", fmt.Errorf("the relay does not answer: %w", err)
	}
	switch head[0] {
	case relay.Enrolled:
	case relay.BadToken:
		return "", errors.New("the relay does not take the token: it is used, expired or another relay's")
	case relay.AlreadyThere:
		return "", errors.New("this device, or one of that name, is enrolled already; at the relay: edged tunnel remove NAME")
	default:
		return "", errors.New("the relay cannot enrol now; its log says why")
	}
	if _, err := io.ReadFull(c, head[1:]); err != nil {
		return "", err
	}
	name := make([]byte, head[1])
	_, err := io.ReadFull(c, name)
	return string(name), err
}

func newTunnelDevicesCmd() *cobra.Command {
	return &cobra.Command{
		Use: "devices", Short: "At the relay: list the devices that are admitted", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(configFile(cmd))
			if err != nil {
				return err
			}
			list, err := readTunnelUsers(cfg)
			if err != nil {
				return err
			}
			store, err := cfg.tunnelStore()
			if err != nil {
				return err
			}
			enrolled, err := store.Devices()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tGROUPS\tFROM\tID")
			for i, d := range append(list, enrolled...) {
				from := "users_file"
				if i >= len(list) {
					from = "enrolled"
				}
				fmt.Fprintf(w, "%s\t%v\t%s\t%s\n", d.Name, d.Groups, from, d.ID)
			}
			return w.Flush()
		},
	}
}

func newTunnelRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Short: "At the relay: forget a device that has enrolled itself; its session ends within seconds", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadConfig(configFile(cmd))
			if err != nil {
				return err
			}
			store, err := cfg.tunnelStore()
			if err != nil {
				return err
			}
			found, err := store.Remove(args[0])
			if err == nil && !found {
				err = fmt.Errorf("no device called %s has enrolled itself; others stand in tunnel.users_file", args[0])
			}
			return err
		},
	}
}

func newTunnelStatusCmd() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use: "status", Short: "Show how the agent of this host is attached, and who is at the relay", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newAPIClient(cmd, f)
			if err != nil {
				return err
			}
			return c.show(cmd, f, "/api/v1/tunnels", printTunnels)
		},
	}
	f.register(cmd)
	return cmd
}

// tunnelsView is /api/v1/tunnels.
type tunnelsView struct {
	Agent *agentStatus `json:"agent,omitempty"`
	// Neighbours are whom the agent's relay lets it reach; absent while it has no relay.
	Neighbours []agent.Neighbour `json:"neighbours,omitempty"`
	Tunnels    []relay.Tunnel    `json:"tunnels"`
	Streams    []relay.Stream    `json:"streams"`
}

// printTunnels prints /api/v1/tunnels as tables.
func printTunnels(out io.Writer, body []byte) error {
	var v tunnelsView
	if err := json.Unmarshal(body, &v); err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	if a := v.Agent; a != nil {
		state := "not attached: " + a.LastError
		if a.Attached {
			state = fmt.Sprintf("attached to %s by %s (%s) since %s", a.Relay, a.Rung, a.Path, a.Since)
		}
		fmt.Fprintf(w, "agent %s\n%s\nsessions %d, resumed %d times\n", a.ID, state, a.Sessions, a.Resumes)
	}
	if len(v.Neighbours) > 0 {
		fmt.Fprintln(w, "MAY REACH\tONLINE\tID")
	}
	for _, n := range v.Neighbours {
		fmt.Fprintf(w, "%s\t%v\t%s\n", n.Name, n.Online, n.ID)
	}
	if len(v.Tunnels) > 0 {
		fmt.Fprintln(w, "DEVICE\tRUNG\tREMOTE\tSINCE\tRTT\tSTREAMS\tIN\tOUT\tMOVES")
	}
	for _, t := range v.Tunnels {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.1f ms\t%d\t%d\t%d\t%d\n", t.Device, t.Rung, t.Remote, t.Since.Format(time.RFC3339), t.RTT, t.Streams, t.In, t.Out, t.Moves)
	}
	if len(v.Streams) > 0 {
		fmt.Fprintln(w, "FROM\tTO\tSERVICE\tSINCE")
	}
	for _, s := range v.Streams {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.From, s.To, s.Service, s.Since.Format(time.RFC3339))
	}
	return w.Flush()
}
