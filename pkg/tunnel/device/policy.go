package device

import (
	"errors"
	"fmt"
	"slices"
)

// Any stands in a rule for every device or every service.
const Any = "*"

// Rule lets devices reach services of devices. What no rule lets is refused.
type Rule struct {
	From     string   `yaml:"from" jsonschema:"required" jsonschema_description:"who may open: a device's name, a group, or * for every device"`
	To       string   `yaml:"to" jsonschema:"required" jsonschema_description:"whose services: a device's name, a group, or *"`
	Services []string `yaml:"services" jsonschema:"required" jsonschema_description:"which services, or *"`
}

// Validate returns all faults, each "key: what is wrong", joined.
func (r Rule) Validate() error {
	var errs []error
	check := func(key, name string) {
		if name != Any {
			if err := CheckName(name); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", key, err))
			}
		}
	}
	check("from", r.From)
	check("to", r.To)
	if len(r.Services) == 0 {
		errs = append(errs, errors.New("services: at least one, or *"))
	}
	for i, s := range r.Services {
		check(fmt.Sprintf("services[%d]", i), s)
	}
	return errors.Join(errs...)
}

// Policy is what a relay lets pass.
type Policy []Rule

// Allows tells whether a device may reach a service of another.
func (p Policy) Allows(from, to Device, service string) bool {
	return slices.ContainsFunc(p, func(r Rule) bool {
		return is(from, r.From) && is(to, r.To) && (slices.Contains(r.Services, service) || slices.Contains(r.Services, Any))
	})
}

// is tells whether a rule's name means a device.
func is(d Device, name string) bool {
	return name == Any || name == d.Name || slices.Contains(d.Groups, name)
}

// Reaches tells whether a device may reach any service of another.
func (p Policy) Reaches(from, to Device) bool {
	return slices.ContainsFunc(p, func(r Rule) bool { return is(from, r.From) && is(to, r.To) })
}
