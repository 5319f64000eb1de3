package fastpath

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media/pathtest"
)

// inNamespace tells the run of this binary that has a network namespace of its own.
const inNamespace = pathtest.Namespace

// shards is how many gateways there are when all tests run: most of their time is waiting.
const shards = 3

// unlogged leaves the file in which the go command learns what its cache depends on to one process.
const unlogged = "-test.testlogfile="

// TestMain runs all tests again in new network namespaces, which are gateways.
func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) != "" || os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // Pdeathsig is the thread's
	if err := again("-test.list=^$", unlogged); err != nil {
		fmt.Fprintln(os.Stderr, "SKIPPED what needs a network namespace:", err)
		os.Exit(m.Run())
	}
	var err error
	if flag.Parse(); choosy() {
		err = again()
	} else {
		err = againSharded()
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	} else if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// choosy tells whether the tests are chosen, or write into files of which there is one.
func choosy() (is bool) {
	flag.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "test.timeout", "test.v", "test.count", "test.short", "test.failfast", "test.parallel", "test.paniconexit0", "test.testlogfile", "test.fullpath":
		default:
			is = true
		}
	})
	return is
}

// inOwn returns the command that runs this binary in a network namespace of its own.
func inOwn(stdout io.Writer, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], slices.Concat(os.Args[1:], args)...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	return cmd
}

func again(args ...string) error { return inOwn(os.Stdout, args...).Run() }

// againSharded deals the tests out. What the shards say comes in one piece each.
func againSharded() error {
	var list strings.Builder
	if err := inOwn(&list, "-test.list=^(Test|Fuzz|Example)", unlogged).Run(); err != nil {
		return err
	}
	var names [shards][]string
	for i, name := range strings.Fields(list.String()) {
		names[i%shards] = append(names[i%shards], name)
	}
	var said [shards]bytes.Buffer
	var cmds [shards]*exec.Cmd
	var errs []error
	for i := range cmds {
		args := []string{"-test.run=^(" + strings.Join(names[i], "|") + ")$"}
		if i > 0 {
			args = append(args, unlogged)
		}
		cmds[i] = inOwn(&said[i], args...)
		errs = append(errs, cmds[i].Start())
	}
	for i, cmd := range cmds {
		if errs[i] == nil {
			errs[i] = cmd.Wait()
		}
		_, err := said[i].WriteTo(os.Stdout)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// needKernel skips the test where no program can be loaded; where only ours cannot, it fails.
func needKernel(t testing.TB) {
	t.Helper()
	if os.Getenv(inNamespace) == "" {
		t.Skip("SKIPPED: needs root, for network namespaces and BPF")
	}
	switch err := loadable(); {
	case err == nil:
	case errors.Is(err, unix.EPERM) && !refused(err), errors.Is(err, ebpf.ErrNotSupported), diagnoseKernel(Fail).Level == Fail:
		t.Skipf("SKIPPED: %v", err)
	default:
		t.Fatal(err)
	}
}

// loadable tells whether both programs can be loaded, which takes a while.
var loadable = sync.OnceValue(func() error {
	k, err := loadPinned(nil, 0, true)
	if err != nil {
		return err
	}
	return errors.Join(k.noXDP, k.close())
})
