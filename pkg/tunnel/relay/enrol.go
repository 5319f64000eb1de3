package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/device"
)

// Answers to an enrolment, one octet. After Enrolled follows the length of the device's name in one octet, and the name.
const (
	Enrolled     byte = 0
	BadToken     byte = 1
	AlreadyThere byte = 2
	CannotNow    byte = 3
)

// Enrol reads the secret of a token from a device that has shown its key, and answers. It closes conn.
func (r *Relay) Enrol(ctx context.Context, conn net.Conn, peer device.ID, via Via) {
	r.running.Add(1)
	defer r.running.Done()
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(enrolTime))
	var t device.Token
	if _, err := io.ReadFull(conn, t.Secret[:]); err != nil {
		r.count.refused.WithLabelValues("enrolment").Inc()
		return
	}
	d, answer := r.enrol(t, peer)
	if answer != Enrolled {
		r.count.refused.WithLabelValues("enrolment").Inc()
		r.log.Warn("enrolment refused", zap.Stringer("id", peer), zap.String("remote", via.Remote), zap.Uint8("answer", answer))
	} else {
		r.log.Info("device enrolled", zap.String("device", d.Name), zap.Stringer("id", peer), zap.String("remote", via.Remote))
	}
	text := []byte{answer}
	if answer == Enrolled {
		text = append(append(text, byte(len(d.Name))), d.Name...)
	}
	if _, err := conn.Write(text); err != nil {
		r.log.Info("enrolment: answer not sent", zap.Stringer("id", peer), zap.Error(err))
	}
}

func (r *Relay) enrol(t device.Token, peer device.ID) (device.Device, byte) {
	if r.deps.Store == nil {
		return device.Device{}, BadToken
	}
	d, err := r.deps.Store.Redeem(t.Secret, peer, r.deps.Registry, time.Now())
	switch {
	case errors.Is(err, device.ErrToken):
		return d, BadToken
	case errors.Is(err, device.ErrTaken):
		return d, AlreadyThere
	}
	if err == nil {
		err = r.deps.Enrolled(d)
	}
	if err != nil {
		r.log.Error("enrolment", zap.Error(err))
		return d, CannotNow
	}
	return d, Enrolled
}
