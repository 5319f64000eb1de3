package oracle

import (
	"os"
	"testing"

	sipgo "github.com/emiago/sipgo/sip"
	"github.com/ghettovoice/gosip/log"
	"github.com/ghettovoice/gosip/sip/parser"
	"github.com/sirupsen/logrus"

	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// BenchmarkParseAndPrint reads the desk phone's INVITE and writes it again.
func BenchmarkParseAndPrint(b *testing.B) {
	raw, err := os.ReadFile("../testdata/desk.sip")
	if err != nil {
		b.Fatal(err)
	}
	b.Run("sipmsg", func(b *testing.B) {
		var m sipmsg.Message
		var e sipmsg.Editor
		var out []byte
		b.ReportAllocs()
		for b.Loop() {
			if err := m.Parse(raw); err != nil {
				b.Fatal(err)
			}
			e.Reset(&m)
			out = e.AppendTo(out[:0])
		}
	})
	b.Run("sipgo", func(b *testing.B) {
		p := sipgo.NewParser()
		b.ReportAllocs()
		for b.Loop() {
			msg, err := p.ParseSIP(raw)
			if err != nil {
				b.Fatal(err)
			}
			_ = msg.String()
		}
	})
	b.Run("gosip", func(b *testing.B) {
		quiet := logrus.New()
		quiet.SetLevel(logrus.PanicLevel)
		logger := log.NewLogrusLogger(quiet, "", nil)
		b.ReportAllocs()
		for b.Loop() {
			msg, err := parser.NewPacketParser(logger).ParseMessage(raw)
			if err != nil {
				b.Fatal(err)
			}
			_ = msg.String()
		}
	})
}
