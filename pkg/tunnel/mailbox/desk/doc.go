// Package desk is where programs at a site leave and fetch messages: HTTP on a unix socket of the agent. Who may open the socket
// may send as this device and read its mailbox; there is no other login.
//
//	POST   /v1/messages?to=DEVICE…   body: the text   ─► sealed, sent, 200 once the relay has it on disk
//	GET    /v1/inbox?after=N&wait=S                   ─► 200 the text of the next message, verified; 204: none came
//	DELETE /v1/inbox?upto=N                           ─► 204 once the relay has dropped them
//	GET    /v1/status                                 ─► what waits
//
// It is not a queue of its own: what was not acknowledged stays at the relay. Only the large message that is being
// read is kept here, in a file, so that its download goes on after whatever breaks.
package desk
