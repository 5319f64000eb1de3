package tftp

import (
	"testing"
	"time"
)

func TestPortRange(t *testing.T) {
	for text, want := range map[string]PortRange{"6891-6901": {6891, 6901}, "6891": {6891, 6891}, "": {}} {
		var r, back PortRange
		if err := r.UnmarshalText([]byte(text)); err != nil || r != want {
			t.Errorf("%q: %v, %v", text, r, err)
		}
		written, err := r.MarshalText()
		if err != nil || back.UnmarshalText(written) != nil || back != r {
			t.Errorf("%q written as %q, %v", text, written, err)
		}
	}
	for _, text := range []string{"a", "1-b", "-", "70000", "1-2-3"} {
		var r PortRange
		if err := r.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q taken as %v", text, r)
		}
	}
}

func TestValidate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Fatal(err)
	}
	both := DefaultConfig()
	both.Plain, both.Content.Verify = true, true
	if both.Validate() == nil {
		t.Error("plain and content together")
	}
	bad := Config{
		Ports: PortRange{80, 90}, Deny: []string{".exe", "EXE", "a.b", ""}, Allow: []string{"txt "}, Directions: "x", Policy: []Rule{{}},
		GUIDs: []string{"{}"}, Pending: time.Millisecond, Idle: 25 * time.Hour, MaxInvitations: 1 << 21,
	}
	many, ok := bad.Validate().(interface{ Unwrap() []error })
	if !ok || len(many.Unwrap()) != 12 {
		t.Fatalf("%v", bad.Validate())
	}
}

func TestFits(t *testing.T) {
	for _, tt := range []struct {
		pattern, text string
		want          bool
	}{
		{"", "anything", true},
		{"*", "", true},
		{"*@example.org", "a/b@example.org", true},
		{"*@EXAMPLE.org", "alice@example.org", true},
		{"a?ice@*", "alice@example.org", true},
		{"alice", "alice@example.org", false},
		{"*.org", "alice@example.com", false},
		{"*a*b*c", "xxaxxbxxbxxc", true},
		{"*a*b*c", "xxaxxbxxbxxcx", false},
		{"a**", "a", true},
		{"?", "", false},
	} {
		if got := fits(tt.pattern, tt.text); got != tt.want {
			t.Errorf("%q on %q: %v", tt.pattern, tt.text, got)
		}
	}
}
