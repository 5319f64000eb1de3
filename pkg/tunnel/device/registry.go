package device

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Device is what a relay knows of a device.
type Device struct {
	ID     ID       `json:"id"`
	Name   string   `json:"name"`
	Groups []string `json:"groups,omitempty"`
}

// Bounds of files of devices.
const (
	maxDeviceFile = 64 << 20
	maxGroups     = 64
)

// ParseDevices reads a file of devices, one a line: "ID NAME [GROUP,GROUP...]"; what follows # is a comment. All faults
// come at once, each with its line.
func ParseDevices(text []byte) ([]Device, error) {
	if len(text) > maxDeviceFile {
		return nil, fmt.Errorf("more than %d MiB", maxDeviceFile>>20)
	}
	var out []Device
	var errs []error
	number := 0
	for line := range bytes.Lines(text) {
		number++
		line, _, _ = bytes.Cut(line, []byte("#"))
		fields := strings.Fields(string(line))
		if len(fields) == 0 {
			continue
		}
		d, err := parseDevice(fields)
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", number, err))
			continue
		}
		out = append(out, d)
	}
	return out, errors.Join(append(errs, checkTwice(out))...)
}

func parseDevice(fields []string) (d Device, err error) {
	if len(fields) < 2 || len(fields) > 3 {
		return d, errors.New("not ID NAME [GROUP,GROUP...]")
	}
	if d.ID, err = ParseID(fields[0]); err != nil {
		return d, err
	}
	if err := CheckName(fields[1]); err != nil {
		return d, err
	}
	d.Name = fields[1]
	if len(fields) == 3 {
		d.Groups = strings.Split(fields[2], ",")
	}
	return d, CheckGroups(d.Groups)
}

// CheckGroups says what is wrong with a list of groups.
func CheckGroups(groups []string) error {
	if len(groups) > maxGroups {
		return fmt.Errorf("more than %d groups", maxGroups)
	}
	for _, g := range groups {
		if err := CheckName(g); err != nil {
			return fmt.Errorf("group: %w", err)
		}
	}
	return nil
}

// checkTwice finds an ID or a name that two devices have.
func checkTwice(list []Device) error {
	ids, names := map[ID]bool{}, map[string]bool{}
	var errs []error
	for _, d := range list {
		if ids[d.ID] {
			errs = append(errs, fmt.Errorf("%s stands twice", d.ID))
		}
		if names[d.Name] {
			errs = append(errs, fmt.Errorf("two devices are called %s", d.Name))
		}
		ids[d.ID], names[d.Name] = true, true
	}
	return errors.Join(errs...)
}

// line writes what parseDevice reads.
func (d Device) line() string {
	return strings.TrimSpace(d.ID.String()+" "+d.Name+" "+strings.Join(d.Groups, ",")) + "\n"
}

// Registry is who a relay admits. It may be read while it is replaced.
type Registry struct {
	mu     sync.RWMutex
	byID   map[ID]Device
	byName map[string]ID
}

// Replace has the registry hold these devices and no others, or says why it cannot.
func (r *Registry) Replace(list []Device) error {
	if err := checkTwice(list); err != nil {
		return err
	}
	byID, byName := make(map[ID]Device, len(list)), make(map[string]ID, len(list))
	for _, d := range list {
		byID[d.ID], byName[d.Name] = d, d.ID
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byID, r.byName = byID, byName
	return nil
}

// Lookup returns the device of an ID.
func (r *Registry) Lookup(id ID) (Device, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	d, ok := r.byID[id]
	return d, ok
}

// Named returns the device of a name.
func (r *Registry) Named(name string) (Device, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	d, ok := r.byID[r.byName[name]]
	return d, ok && d.Name == name
}

// List returns all devices by name.
func (r *Registry) List() []Device {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]Device, 0, len(r.byID))
	for _, d := range r.byID {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b Device) int { return strings.Compare(a.Name, b.Name) })
	return out
}
