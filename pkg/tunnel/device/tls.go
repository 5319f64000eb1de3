package device

import (
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
)

// The application protocols (RFC 7301) of a device at its relay, and of two devices through it.
const (
	ALPN    = "edged-tunnel/1"
	ALPNEnd = "edged-e2e/1"
)

// ServerTLS returns the configuration of a relay, to which devices come; admit says who may (nil: every device, and
// who takes the connection must look at [PeerID]). A refusal ends the handshake.
func ServerTLS(k Key, admit func(ID) error) (*tls.Config, error) {
	return mutual(k, ALPN, "", admit)
}

// ClientTLS returns the configuration by which a device comes to a relay: to that one and no other. serverName is what
// the hello names in clear; "" or an address: nothing.
func ClientTLS(k Key, relay ID, serverName string) (*tls.Config, error) {
	return mutual(k, ALPN, serverName, only(relay))
}

// EndServerTLS returns the configuration of the device that is called, for a caller whom the relay has named.
func EndServerTLS(k Key, caller ID) (*tls.Config, error) { return mutual(k, ALPNEnd, "", only(caller)) }

// EndClientTLS returns the configuration of the device that calls another.
func EndClientTLS(k Key, called ID) (*tls.Config, error) { return mutual(k, ALPNEnd, "", only(called)) }

func only(want ID) func(ID) error {
	return func(id ID) error {
		if !id.Equal(want) {
			return fmt.Errorf("the key at the other end is that of %s, not of %s", id, want)
		}
		return nil
	}
}

// mutual is TLS 1.3 in which both show a device's key. Keys are pinned, so no authority signs and no name is compared;
// VerifyConnection, unlike VerifyPeerCertificate, is asked in every handshake.
func mutual(k Key, alpn, serverName string, admit func(ID) error) (*tls.Config, error) {
	cert, err := k.Certificate()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{alpn}, ServerName: serverName, DynamicRecordSizingDisabled: true,
		ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true, SessionTicketsDisabled: true, //nolint:gosec // VerifyConnection pins the key
		VerifyConnection: func(s tls.ConnectionState) error {
			id, err := PeerID(s)
			if err != nil {
				return err
			}
			if s.NegotiatedProtocol != alpn {
				return fmt.Errorf("the other end does not speak %s", alpn)
			}
			if admit == nil {
				return nil
			}
			return admit(id)
		},
	}, nil
}

// PeerID returns who is at the other end. TLS has seen it prove that it has the key.
func PeerID(s tls.ConnectionState) (ID, error) {
	if len(s.PeerCertificates) != 1 {
		return ID{}, errors.New("the other end shows not exactly one certificate")
	}
	key, ok := s.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return ID{}, errors.New("the key at the other end is not of Ed25519")
	}
	return IDOf(key), nil
}
