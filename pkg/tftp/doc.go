// Package tftp lets Messenger's and Communicator's file transfers through the edge. Those who asked for it call them
// "TFTP over TCP"; on the wire it is MSNFTP with the version word MSN_SECURE_FTP, on TCP 6891-6901. It has nothing
// but the name in common with RFC 1350.
//
// An [Editor] is shown the invitations that travel in SIP (by an interface of the SIP ALG, which it does not import),
// judges them, and puts the edge's address in place of the listening client's. It opens no socket and does not
// read the file: the relay does the first, subpackages the second.
//
//	INVITE  file, size, cookie    ──► policy ──► passes, is refused, or is remembered as denied
//	ACCEPT  keys                  ──► remembered
//	ACCEPT  IP-Address, Port      ──► pinhole.Opener ──► the edge's address and port instead
//	CANCEL, BYE, nobody connects  ──► the pinhole is closed
package tftp
