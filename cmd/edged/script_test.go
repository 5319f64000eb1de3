package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"edged": main})
}

// TestScripts runs the command line as users do: testdata/script/*.txtar.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			pid := os.Getpid()
			e.Setenv("SIPADDR", fmt.Sprintf("127.78.%d.%d", pid>>8&255, pid&255))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"until": untilSucceeds, "expand": expand},
	})
}

// untilSucceeds runs a command until it succeeds: "until edged status --healthz".
func untilSucceeds(ts *testscript.TestScript, neg bool, args []string) {
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); <-time.After(200 * time.Millisecond) {
		if err = ts.Exec(args[0], args[1:]...); (err != nil) == neg {
			return
		}
	}
	ts.Fatalf("until %s: %v", strings.Join(args, " "), err)
}

// expand replaces $VARIABLES in files.
func expand(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		text := os.Expand(ts.ReadFile(name), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o600))
	}
}

func TestExitCodes(t *testing.T) {
	for _, tc := range []struct {
		args string
		want int
	}{
		{"check --config ../../configs/edged.yaml", exitOK},
		{"check --config testdata/bad/log-level.yaml", exitConfig},
		{"run --config testdata/bad/log-level.yaml", exitConfig},
		{"check --config testdata/no-such-file.yaml", exitFailed},
		{"status --admin 127.0.0.1:1", exitFailed},
		{"status --config testdata/no-such-file.yaml", exitFailed},
		{"nonsense", exitFailed},
		{"version --json", exitOK},
		{"completion bash", exitOK},
	} {
		var out, stderr bytes.Buffer
		if got := execute(strings.Fields(tc.args), &out, &stderr); got != tc.want {
			t.Errorf("edged %s: exit code %d, want %d; %s", tc.args, got, tc.want, &stderr)
		}
		if tc.want != exitOK && (stderr.Len() == 0 || out.Len() > 0) {
			t.Errorf("edged %s: stdout %q, stderr %q", tc.args, &out, &stderr)
		}
	}
}
