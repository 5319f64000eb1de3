package veth

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// loadEnv marks the process that has moved to the load's core.
const loadEnv = "BENCH_VETH_LOAD"

// OnLoadCore runs this command again on the core of the load, before what else runs there. It returns nil in the process
// that is there, and an error where the machine or its user cannot.
func OnLoadCore() error {
	switch {
	case os.Geteuid() != 0:
		return errors.New("needs root for network namespaces")
	case os.Getenv(loadEnv) != "":
		return nil
	case runtime.NumCPU() < 2:
		return errors.New("needs two processors: one for the gateway, one for the load")
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("own program: %w", err)
	}
	path, err := exec.LookPath("chrt")
	if err != nil {
		return errors.New("chrt is missing: apt-get install util-linux")
	}
	args := append([]string{"chrt", "--rr", "1", "taskset", "-c", fmt.Sprint(loadCPU), self}, os.Args[1:]...)
	return syscall.Exec(path, args, append(os.Environ(), loadEnv+"=1"))
}

// CloseOnSignal has the rig closed, and the program ended, when it is interrupted.
func (r *Rig) CloseOnSignal() {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-interrupted
		if err := r.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}()
}

// Build returns binary or, if it is empty, edged as built from this checkout.
func (r *Rig) Build(binary string) (string, error) {
	if binary != "" {
		return binary, nil
	}
	binary = filepath.Join(r.Dir, "edged")
	_, err := Run("go", "build", "-trimpath", "-o", binary, "./cmd/edged")
	return binary, err
}

// File writes a configuration, and returns its path.
func (r *Rig) File(name, text string) (string, error) {
	path := filepath.Join(r.Dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return "", fmt.Errorf("configuration: %w", err)
	}
	return path, nil
}

// Process starts a program in the gateway, on its core, before other programs there.
func (r *Rig) Process(args ...string) (stop func(), err error) {
	cmd := exec.Command("ip", append([]string{"netns", "exec", r.Gateway, "chrt", "--rr", "1", "taskset", "-c", fmt.Sprint(gatewayCPU)}, args...)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	return func() {
		// SIGTERM lets edged take its program off the devices.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		kill := time.AfterFunc(5*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		_ = cmd.Wait() // ended by a signal
		kill.Stop()
	}, nil
}
