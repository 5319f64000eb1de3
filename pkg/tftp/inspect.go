package tftp

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tftp/content"
	"edged.dev/edged/pkg/tftp/msnftp"
)

// newChecker returns what looks at files while they pass, nil if nothing is to be looked at.
func newChecker(cfg content.Config, log *zap.Logger) (*content.Checker, error) {
	if !cfg.Enabled() {
		return nil, nil //nolint:nilnil // as the comment says
	}
	c, err := content.New(cfg, log.Named("content"))
	if err != nil {
		return nil, fmt.Errorf("content: %w", err)
	}
	return c, nil
}

// inspect returns how the transfer's file is looked at while it passes; reason tells why it cannot be, and both are
// empty if nobody wants to.
func (e *Editor) inspect(t *transfer) (check func(context.Context, int64) (msnftp.Check, error), reason string) {
	if e.checker == nil {
		return nil, ""
	}
	key, err := base64.StdEncoding.DecodeString(t.encryptionKey)
	hash, err2 := base64.StdEncoding.DecodeString(t.hashKey)
	if err != nil || err2 != nil || len(key) == 0 || len(hash) == 0 {
		return nil, reasonKeys
	}
	name, checker := t.file, e.checker
	return func(ctx context.Context, size int64) (msnftp.Check, error) {
		f := content.File{Name: name, Size: size, EncryptionKey: key, HashKey: hash}
		c, err := checker.Begin(ctx, f)
		if err != nil {
			return nil, err
		}
		return c, nil
	}, ""
}

// outcome names what became of a data connection, as the label of a metric, with what a person would want to know of it.
func outcome(err error) (result, detail string) {
	if denied, ok := errors.AsType[*content.Denied](err); ok {
		return denied.Reason, denied.Name
	}
	return msnftp.Reason(err), ""
}
