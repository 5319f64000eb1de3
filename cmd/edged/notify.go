package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// notify tells systemd a state (sd_notify(3)); without systemd it does nothing.
func notify(log *zap.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd was not reached", zap.Error(err))
	}
}

// notifyFile is notify with a file, of which systemd gets a copy.
func notifyFile(state string, fd int) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	return unix.Sendmsg(s, []byte(state), unix.UnixRights(fd), &unix.SockaddrUnix{Name: path}, unix.MSG_NOSIGNAL)
}

func notifyReloading(log *zap.Logger) {
	notify(log, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
}

// notifyDraining asks systemd for the time that the drain may take.
func notifyDraining(log *zap.Logger, limit time.Duration) {
	notify(log, fmt.Sprintf("%s\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=%d",
		daemon.SdNotifyStopping, (limit+5*time.Second).Microseconds()))
}

// notifyDrainLeft has systemctl status show how far a drain is.
func notifyDrainLeft(log *zap.Logger, calls int) {
	notify(log, fmt.Sprintf("STATUS=draining, calls left: %d", calls))
}

// feedWatchdog feeds systemd's watchdog for as long as every service answers. A
// service that hangs keeps alive from returning, and systemd restarts the daemon.
// It returns nil when ctx ends, also where there is no watchdog.
func feedWatchdog(ctx context.Context, alive func(), log *zap.Logger) error {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every <= 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			alive()
			notify(log, daemon.SdNotifyWatchdog)
		}
	}
}
