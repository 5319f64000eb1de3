package main

import (
	"io"
	"os"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"
)

// newLogger returns a logger to w in the given format ("auto", "json", "text"). The
// level can be changed while it runs.
func newLogger(w io.Writer, format string, level zap.AtomicLevel) *zap.Logger {
	enc := jsonEncoder()
	if format == "text" || format == "auto" && isTerminal(w) && !underSystemd() {
		enc = textEncoder()
	}
	out := zapcore.Lock(zapcore.AddSync(w))
	// What strangers can cause at will must not fill the disk; the metrics count all of it. Whoever asks for
	// the level debug gets everything.
	debug := zapcore.NewCore(enc, out, zap.LevelEnablerFunc(func(l zapcore.Level) bool {
		return l < zapcore.InfoLevel && level.Enabled(l)
	}))
	rest := zapcore.NewCore(enc, out, zap.LevelEnablerFunc(func(l zapcore.Level) bool {
		return l >= zapcore.InfoLevel && level.Enabled(l)
	}))
	return zap.New(zapcore.NewTee(debug, zapcore.NewSamplerWithOptions(rest, time.Second, maxEqual, keepOneOf)))
}

// Of messages with the same text the first maxEqual of each second are written, then one of keepOneOf.
const (
	maxEqual  = 50
	keepOneOf = 1000
)

func jsonEncoder() zapcore.Encoder {
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	cfg.EncodeDuration = zapcore.StringDurationEncoder
	return zapcore.NewJSONEncoder(cfg)
}

func textEncoder() zapcore.Encoder {
	cfg := zap.NewDevelopmentEncoderConfig()
	cfg.EncodeTime = zapcore.TimeEncoderOfLayout(time.TimeOnly + ".000")
	cfg.EncodeLevel = zapcore.CapitalLevelEncoder
	cfg.EncodeDuration = zapcore.StringDurationEncoder
	return zapcore.NewConsoleEncoder(cfg)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// underSystemd tells whether systemd started this process (systemd.exec(5)).
func underSystemd() bool {
	return os.Getenv("JOURNAL_STREAM") != "" || os.Getenv("INVOCATION_ID") != ""
}

// setLevel applies a level of the configuration.
func setLevel(al zap.AtomicLevel, level string) {
	if l, err := zapcore.ParseLevel(level); err == nil {
		al.SetLevel(l)
	}
}
