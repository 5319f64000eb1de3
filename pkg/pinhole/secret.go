package pinhole

import (
	"fmt"
	"os"
	"strings"
)

// Secret is a text that is never printed.
type Secret string

// UnmarshalText reads the secret, or the environment variable that "${NAME}" names.
func (s *Secret) UnmarshalText(b []byte) error {
	name, isVar := strings.CutPrefix(string(b), "${")
	if !isVar {
		*s = Secret(b)
		return nil
	}
	name, isVar = strings.CutSuffix(name, "}")
	value := os.Getenv(name)
	if !isVar || value == "" {
		return fmt.Errorf("the environment variable %s is not set", name)
	}
	*s = Secret(value)
	return nil
}

// String hides the secret.
func (Secret) String() string { return "***" }

// GoString hides the secret.
func (Secret) GoString() string { return "***" }

// MarshalText hides the secret.
func (Secret) MarshalText() ([]byte, error) { return []byte("***"), nil }
