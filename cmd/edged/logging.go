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
	return zap.New(zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(w)), level))
}

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
