// Package demophone holds small SIP phones for `edged demo` and for tests: they register, call,
// answer, and send audio whose content the far end verifies. A call's audio is a sequence of
// two-tone frames derived from its Call-ID, so that no other call's audio, no silence and no
// noise can pass for it. It is not a product softphone: G.711 µ-law only, no sound card.
//
// Phones, and the registrar they use, stand on sockets that they are given. A [Tap] around a
// SIP socket refuses all sources but the named ones, as a network without a route would, and
// keeps what passed for a later look.
//
//	Phone ── INVITE, SDP ──► edge ──► Registrar ──► Phone
//	  Stream ═══ RTP: Pattern frames ═══ edge ═══► Stream: verified frame by frame
package demophone
