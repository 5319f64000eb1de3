package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"edged.dev/edged/pkg/pinhole"
)

// apiClient reads the admin listener of a running daemon.
type apiClient struct {
	base  string
	token pinhole.Secret
	http  *http.Client
}

// clientFlags are the flags of the commands that ask a running daemon.
type clientFlags struct {
	admin string
	json  bool
	watch bool
}

func (f *clientFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.admin, "admin", "", "`ADDRESS` of the admin listener instead of the configured one")
	cmd.Flags().BoolVar(&f.json, "json", false, "print the API's JSON")
	cmd.Flags().BoolVar(&f.watch, "watch", false, "print again every second until interrupted")
}

// newAPIClient finds the daemon by the section admin of the configuration. Faults
// elsewhere in the file do not matter here, and without a file the default address is used.
func newAPIClient(cmd *cobra.Command, f clientFlags) (*apiClient, error) {
	cfg := defaultConfig()
	data, err := os.ReadFile(configFile(cmd))
	if err != nil && (f.admin == "" && !os.IsNotExist(err) || cmd.Flags().Changed("config")) {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	decodeYAML(data, &cfg)
	if f.admin != "" {
		cfg.Admin.Listen = f.admin
	}
	if cfg.Admin.Listen == "" {
		return nil, fmt.Errorf("the configuration turns the admin listener off (admin.listen is empty)")
	}
	return dialAdmin(cfg.Admin), nil
}

func dialAdmin(c adminConfig) *apiClient {
	client := &apiClient{base: "http://" + c.Listen, token: c.Token, http: &http.Client{Timeout: 5 * time.Second}}
	if path, unix := c.unixPath(); unix {
		client.base = "http://localhost"
		client.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}}
	}
	return client
}

// get returns the body of a successful answer.
func (c *apiClient) get(ctx context.Context, path string) ([]byte, error) {
	return c.ask(ctx, http.MethodGet, path)
}

// ask is get with another method.
func (c *apiClient) ask(ctx context.Context, method, path string) ([]byte, error) {
	status, body, err := c.do(ctx, method, path)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s: %d %s: %s", path, status, http.StatusText(status), printableText(strings.TrimSpace(string(body))))
	}
	if err != nil {
		return nil, err
	}
	return body, nil
}

// do returns the status and the body of any answer.
func (c *apiClient) do(ctx context.Context, method, path string) (status int, body []byte, err error) {
	return c.send(ctx, method, path, http.NoBody)
}

// send is do with a body.
func (c *apiClient) send(ctx context.Context, method, path string, in io.Reader) (status int, body []byte, err error) {
	resp, err := c.request(ctx, method, path, in)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return 0, nil, fmt.Errorf("%s: %w", path, err)
	}
	return resp.StatusCode, body, nil
}

// request asks; the answer's body is the caller's to close.
func (c *apiClient) request(ctx context.Context, method, path string, in io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, in)
	if err != nil {
		return nil, err
	}
	req.Header.Set(ownHeader, "1")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+string(c.token))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("the daemon does not answer: %w", err)
	}
	return resp, nil
}

// show prints a document of the API, as it is or as a table, once or again and again.
func (c *apiClient) show(cmd *cobra.Command, f clientFlags, path string, table func(io.Writer, []byte) error) error {
	for {
		body, err := c.get(cmd.Context(), path)
		if err != nil {
			return err
		}
		var out bytes.Buffer
		switch {
		case f.json && f.watch: // one document a line, for programs
			err = json.Compact(&out, body)
			out.WriteByte('\n')
		case f.json:
			out.Write(body)
		default:
			err = table(&out, body)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if f.watch && !f.json && isTerminal(cmd.OutOrStdout()) {
			fmt.Fprint(cmd.OutOrStdout(), "\033[H\033[2J")
		}
		if _, err := out.WriteTo(cmd.OutOrStdout()); err != nil || !f.watch {
			return err
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}
