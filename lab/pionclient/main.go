// Pionclient is a client of TURN for the lab: two of pion/webrtc's peer connections, which may use relayed candidates of one
// server alone, have 50 messages go and come back by a data channel. It is a module of its own, since pion/webrtc needs
// other versions of pion's modules than the edge has.
//
//	pionclient URL USER PASSWORD     exits with 0 if all came back; SSL_CERT_FILE names the authorities of turns:
package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/webrtc/v4"
)

const (
	messages = 50
	patience = 30 * time.Second
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: pionclient URL USER PASSWORD")
		os.Exit(2)
	}
	if err := run(webrtc.ICEServer{URLs: os.Args[1:2], Username: os.Args[2], Credential: os.Args[3]}); err != nil {
		fmt.Fprintln(os.Stderr, "pionclient:", err)
		os.Exit(1)
	}
}

func run(server webrtc.ICEServer) error {
	var pair [2]*webrtc.PeerConnection
	for i := range pair {
		var err error
		if pair[i], err = connection(server); err != nil {
			return err
		}
		defer pair[i].Close()
	}
	pair[1].OnDataChannel(func(c *webrtc.DataChannel) {
		c.OnMessage(func(m webrtc.DataChannelMessage) { _ = c.Send(m.Data) }) // what is lost is missed below
	})
	channel, err := pair[0].CreateDataChannel("t", nil)
	if err != nil {
		return err
	}
	got := make(chan int, messages)
	channel.OnMessage(func(m webrtc.DataChannelMessage) { got <- len(m.Data) })
	channel.OnOpen(func() {
		for i := range messages {
			_ = channel.Send(make([]byte, 1000+i))
		}
	})
	if err := join(pair); err != nil {
		return err
	}
	end := time.After(patience)
	for i := range messages {
		select {
		case n := <-got:
			if n != 1000+i {
				return fmt.Errorf("message %d has %d octets", i, n)
			}
		case <-end:
			return fmt.Errorf("%d of %d messages came back", i, messages)
		}
	}
	fmt.Println("all messages came back")
	return nil
}

// connection returns a peer connection that may use relayed candidates of one server.
func connection(server webrtc.ICEServer) (*webrtc.PeerConnection, error) {
	var e webrtc.SettingEngine
	e.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	e.SetRelayAcceptanceMinWait(0)
	return webrtc.NewAPI(webrtc.WithSettingEngine(e)).NewPeerConnection(webrtc.Configuration{
		ICETransportPolicy: webrtc.ICETransportPolicyRelay, ICEServers: []webrtc.ICEServer{server},
	})
}

var errNoCandidate = errors.New("the server has given no relayed candidate")

// join has both exchange descriptions with all of their candidates.
func join(pair [2]*webrtc.PeerConnection) error {
	offer, err := pair[0].CreateOffer(nil)
	if err != nil {
		return err
	}
	if err := describe(pair[0], offer, pair[1]); err != nil {
		return err
	}
	answer, err := pair[1].CreateAnswer(nil)
	if err != nil {
		return err
	}
	return describe(pair[1], answer, pair[0])
}

// describe gives one's description to the other when it has its candidates.
func describe(from *webrtc.PeerConnection, d webrtc.SessionDescription, to *webrtc.PeerConnection) error {
	gathered := webrtc.GatheringCompletePromise(from)
	if err := from.SetLocalDescription(d); err != nil {
		return err
	}
	<-gathered
	whole := from.LocalDescription()
	parsed, err := whole.Unmarshal()
	if err != nil {
		return err
	}
	for _, m := range parsed.MediaDescriptions {
		if _, ok := m.Attribute("candidate"); ok {
			return to.SetRemoteDescription(*whole)
		}
	}
	return errNoCandidate
}
