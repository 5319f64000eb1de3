package sipmsg

// methodID numbers the methods that are known by name, so that Method need not
// allocate. Unknown methods pass all the same.
type methodID uint8

const (
	methodOther methodID = iota
	methodINVITE
	methodACK
	methodBYE
	methodCANCEL
	methodREGISTER
	methodOPTIONS
	methodPRACK
	methodUPDATE
	methodREFER
	methodMESSAGE
	methodSUBSCRIBE
	methodNOTIFY
	methodPUBLISH
	methodINFO
	methodBENOTIFY
	methodSERVICE
	methodNEGOTIATE

	numMethods
)

// name returns the method as on the wire, "" for methodOther.
func (id methodID) name() string {
	return [numMethods]string{
		"", "INVITE", "ACK", "BYE", "CANCEL", "REGISTER", "OPTIONS", "PRACK", "UPDATE", "REFER", "MESSAGE",
		"SUBSCRIBE", "NOTIFY", "PUBLISH", "INFO", "BENOTIFY", "SERVICE", "NEGOTIATE",
	}[id]
}

// methodByName finds a method; case counts (RFC 3261 §7.1).
func methodByName(b []byte) methodID {
	for id := methodINVITE; id < numMethods; id++ {
		if n := id.name(); len(n) == len(b) && n == string(b) {
			return id
		}
	}
	return methodOther
}
