package h323phone

import (
	"fmt"
	"net/netip"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h245"
)

// Video: each phone opens a channel for its camera, and the called one, which is the slave, a second one for what it
// presents (H.239 §11): it asks for the token first, leaves the session to the master, and learns it from the Ack.

// The numbers of the channels, and the session that the master chooses for the second video.
const (
	cameraChannel       = 201
	presentationChannel = 202
	cameraSession       = 2
	presentationSession = 32
)

// presentationMessage are the generic messages of H.239, roleLabel its capability.
const (
	presentationMessage = "0.0.8.239.2"
	roleLabel           = "0.0.8.239.1.2"
	advancedVideo       = "0.0.8.241.0.0.1" // H.264
	tokenRequest        = 3
	tokenResponse       = 4
)

// video are the ends of the streams of one call.
type video struct{ camera, presentation *media }

func newVideo(at netip.Addr) (v video, err error) {
	if v.camera, err = newMedia(at, false); err != nil {
		return video{}, err
	}
	if v.presentation, err = newMedia(at, false); err != nil {
		v.camera.close()
		return video{}, err
	}
	return v, nil
}

func (v video) close() {
	for _, m := range []*media{v.camera, v.presentation} {
		if m != nil {
			m.close()
		}
	}
}

// Watched returns how many packets of the other phone's camera and of its presentation have arrived.
func (c *Call) Watched() (camera, presentation int64) {
	if c.video.camera == nil {
		return 0, 0
	}
	return c.video.camera.heard.Load(), c.video.presentation.heard.Load()
}

func capability(oid string) per.Value {
	return per.Fields(per.F("capabilityIdentifier", per.Alternative("standard", per.Identifier(oid))))
}

// openVideo opens the camera's channel, and asks for the token of the presentation.
func (c *Call) openVideo() error {
	if !c.phone.Mode.Video {
		return nil
	}
	codec := per.Alternative("genericVideoCapability", capability(advancedVideo))
	if err := c.openStream(cameraChannel, cameraSession, codec, c.video.camera); err != nil || c.caller {
		return err
	}
	return c.token("request", "genericRequest", tokenRequest)
}

func (c *Call) token(class string, kind h245.Kind, number int64) error {
	return c.say(class, kind, per.Fields(
		per.F("messageIdentifier", per.Alternative("standard", per.Identifier(presentationMessage))), per.F("subMessageIdentifier", per.Number(number))))
}

// present opens the second video.
func (c *Call) present() error {
	return c.openStream(presentationChannel, 0, per.Alternative("extendedVideoCapability", per.Fields(
		per.F("videoCapability", per.Elements(per.Alternative("genericVideoCapability", capability(advancedVideo)))),
		per.F("videoCapabilityExtension", per.Elements(capability(roleLabel))))), c.video.presentation)
}

func (c *Call) openStream(channel, session int64, codec per.Value, m *media) error {
	return c.say("request", h245.OpenLogicalChannel, per.Fields(number(channel), per.F("forwardLogicalChannelParameters", per.Fields(
		per.F("dataType", per.Alternative("videoData", codec)),
		per.F("multiplexParameters", per.Alternative("h2250LogicalChannelParameters", per.Fields(
			per.F("sessionID", per.Number(session)), per.F("mediaControlChannel", h245.MediaAddress(m.rtcpAddr())))))))))
}

// acceptVideo takes a channel of the other side's.
func (c *Call) acceptVideo(ch h245.Channel) error {
	m, session := c.video.camera, int64(cameraSession)
	if ch.Number == presentationChannel {
		m, session = c.video.presentation, presentationSession
	}
	if m == nil {
		return fmt.Errorf("video was not offered")
	}
	return c.say("response", h245.OpenLogicalChannelAck, per.Fields(number(int64(ch.Number)),
		per.F("forwardMultiplexAckParameters", per.Alternative("h2250LogicalChannelAckParameters", per.Fields(
			per.F("sessionID", per.Number(session)), per.F("mediaChannel", h245.MediaAddress(m.rtpAddr())),
			per.F("mediaControlChannel", h245.MediaAddress(m.rtcpAddr())), per.F("flowControlToZero", per.Truth(false)))))))
}

// ackedVideo sends a stream to where the other side takes it; false if the channel is no video.
func (c *Call) ackedVideo(ch h245.Channel) bool {
	switch ch.Number {
	case cameraChannel:
		c.video.camera.talk(ch.Forward.MediaChannel.AddrPort)
	case presentationChannel:
		c.video.presentation.talk(ch.Forward.MediaChannel.AddrPort)
	default:
		return false
	}
	return true
}
