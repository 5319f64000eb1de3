package pinhole

import (
	"errors"
	"fmt"
	"slices"
)

// Fault is one thing wrong with an ALG's section of the configuration; Key is relative to the section,
// e.g. "listen[2]".
type Fault struct{ Key, Text string }

// Error returns "key: text".
func (f Fault) Error() string { return f.Key + ": " + f.Text }

// FaultKey returns the key, for whoever knows its line.
func (f Fault) FaultKey() string { return f.Key }

// Faults collects what is wrong with a section. The zero value is none.
type Faults []error

// Add adds a [Fault] of key.
func (f *Faults) Add(key, format string, a ...any) {
	*f = append(*f, Fault{Key: key, Text: fmt.Sprintf(format, a...)})
}

// Listeners adds what is wrong with the listeners of a list: what [Listen.Check] says, and one that is listed twice. key is
// the list's.
func (f *Faults) Listeners(key string, list []Listen, nets Networks, protos ...string) {
	for i, l := range list {
		at := fmt.Sprintf("%s[%d]", key, i)
		if err := l.Check(nets, protos...); err != nil {
			f.Add(at, "%v", err)
		} else if slices.Contains(list[:i], l) {
			f.Add(at, "%s is listed twice", l)
		}
	}
}

// Network adds a fault of key if there is no network of that name.
func (f *Faults) Network(key, name string, nets Networks) {
	if _, ok := nets[name]; !ok {
		f.Add(key, "network %q is not defined under networks", name)
	}
}

// Err returns all, joined; nil if there are none.
func (f Faults) Err() error { return errors.Join(f...) }
