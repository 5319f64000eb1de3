package pinhole

// Fault is one thing wrong with an ALG's section of the configuration; Key is relative to the section,
// e.g. "listen[2]".
type Fault struct{ Key, Text string }

// Error returns "key: text".
func (f Fault) Error() string { return f.Key + ": " + f.Text }

// FaultKey returns the key, for whoever knows its line.
func (f Fault) FaultKey() string { return f.Key }
