package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Tun is an interface of this host's that goes with it.
type Tun struct{ *os.File }

// OpenTun makes the interface of a link (or takes over one of that name that an administrator has made for this user), gives it
// its address and MTU, and brings it up. It needs CAP_NET_ADMIN, unless all of that is done already.
func OpenTun(cfg Config) (*Tun, error) {
	cfg = cfg.Completed()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("link %s: /dev/net/tun: %w", cfg.Name, err)
	}
	if err := attach(fd, cfg.Interface()); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("link %s: interface %s: %w", cfg.Name, cfg.Interface(), err)
	}
	t := &Tun{os.NewFile(uintptr(fd), cfg.Interface())} // not blocking, so in the care of the runtime's poller
	if err := setUp(cfg); err != nil {
		t.Close()
		return nil, fmt.Errorf("link %s: interface %s: %w", cfg.Name, cfg.Interface(), err)
	}
	return t, nil
}

// attach makes the descriptor that of the interface.
func attach(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("the capability CAP_NET_ADMIN is missing: %w", err)
		}
		return err
	}
	return unix.SetNonblock(fd, true)
}

// setUp gives the interface what the configuration says, where it has not got it.
func setUp(cfg Config) error {
	dev, err := netlink.LinkByName(cfg.Interface())
	if err != nil {
		return err
	}
	if dev.Attrs().MTU != cfg.MTU {
		if err := netlink.LinkSetMTU(dev, cfg.MTU); err != nil {
			return fmt.Errorf("mtu %d: %w", cfg.MTU, err)
		}
	}
	if dev.Attrs().Flags&net.FlagUp == 0 { // first: IPv6 makes the route to a peer only on an interface that is up
		if err := netlink.LinkSetUp(dev); err != nil {
			return fmt.Errorf("bring up: %w", err)
		}
	}
	have, err := netlink.AddrList(dev, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, own := range cfg.Addresses {
		peer, _ := ofFamily(cfg.Peer, own)
		if has(have, own) {
			continue
		}
		a := &netlink.Addr{IPNet: host(own), Peer: host(peer)}
		if own.Is6() {
			a.Flags = unix.IFA_F_NODAD // nobody else is on the wire
		}
		if err := netlink.AddrAdd(dev, a); err != nil {
			return fmt.Errorf("address %s: %w", own, err)
		}
	}
	return nil
}

func has(list []netlink.Addr, a netip.Addr) bool {
	for _, x := range list {
		if at, ok := netip.AddrFromSlice(x.IP); ok && at.Unmap() == a {
			return true
		}
	}
	return false
}

// host returns the network of one address.
func host(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
