package proxydial

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/jcmturner/gokrb5/v8/client"
	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/credentials"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/spnego"
)

// kerberosLogin answers Negotiate (RFC 4559) by a Kerberos ticket for the proxy.
type kerberosLogin struct {
	cfg            Kerberos
	user, password string
	proxy          Proxy
	getenv         func(string) string
}

// hasKerberos tells whether there is anything to get tickets by.
func (d *Dialer) hasKerberos() bool {
	k := d.cfg.Kerberos
	return k.Cache != "" || k.Keytab != "" || k.Password || d.getenv("KRB5CCNAME") != ""
}

// answer is one SPNEGO token. A challenge that has a token continues an exchange that Kerberos does not have.
func (l *kerberosLogin) answer(ctx context.Context, c challenge, _, _ string) (string, bool, error) {
	if c.token != "" {
		return "", false, errors.New("the proxy wants a second token")
	}
	type result struct {
		token []byte
		err   error
	}
	done := make(chan result, 1) // one, so that the goroutine ends though nobody waits any more
	go func() {
		token, err := l.token()
		done <- result{token, err}
	}()
	select {
	case r := <-done:
		return "Negotiate " + base64.StdEncoding.EncodeToString(r.token), false, r.err
	case <-ctx.Done(): // the KDC is given up by its own time-outs
		return "", false, context.Cause(ctx)
	}
}

// token gets a ticket and wraps it. The library panics on some damaged files.
func (l *kerberosLogin) token() (token []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("kerberos files: %v", r)
		}
	}()
	krb, err := l.client()
	if err != nil {
		return nil, err
	}
	defer krb.Destroy()
	principal := l.cfg.Principal
	if principal == "" {
		principal = "HTTP/" + hostOf(l.proxy.Address)
	}
	neg := spnego.SPNEGOClient(krb, principal)
	if err := neg.AcquireCred(); err != nil {
		return nil, fmt.Errorf("kerberos login: %w", err)
	}
	ctx, err := neg.InitSecContext()
	if err != nil {
		return nil, fmt.Errorf("ticket for %s: %w", principal, err)
	}
	return ctx.Marshal()
}

// client is one of the ticket cache, the keytab or the password, whichever is configured first.
func (l *kerberosLogin) client() (*client.Client, error) {
	conf, err := l.config()
	if err != nil {
		return nil, err
	}
	user, realm, _ := strings.Cut(l.user, "@")
	// Active Directory knows no FAST for plain accounts.
	noFAST := client.DisablePAFXFAST(true)
	switch {
	case l.cfg.Keytab != "":
		kt, err := keytab.Load(l.cfg.Keytab)
		if err != nil {
			return nil, fmt.Errorf("keytab: %w", err)
		}
		return client.NewWithKeytab(user, realm, kt, conf, noFAST), nil
	case l.cfg.Password:
		return client.NewWithPassword(user, realm, l.password, conf, noFAST), nil
	}
	name := l.cfg.Cache
	if name == "" {
		name = l.getenv("KRB5CCNAME")
	}
	name = strings.TrimPrefix(name, "FILE:")
	cache, err := credentials.LoadCCache(name)
	if err != nil {
		return nil, fmt.Errorf("ticket cache: %w", err)
	}
	return client.NewFromCCache(cache, conf, noFAST)
}

func (l *kerberosLogin) config() (*config.Config, error) {
	name := l.cfg.Config
	if name == "" {
		name = l.getenv("KRB5_CONFIG")
	}
	if name == "" {
		name = "/etc/krb5.conf"
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("kerberos configuration: %w", err)
	}
	conf, err := config.NewFromString(string(b))
	if err != nil {
		return nil, fmt.Errorf("kerberos configuration: %w", err)
	}
	return conf, nil
}
