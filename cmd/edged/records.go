package main

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"

	"edged.dev/edged/pkg/h323"
	"edged.dev/edged/pkg/sipalg"
)

// callRecord is a call of any protocol, as the file, syslog and the events have it.
type callRecord struct {
	Protocol string `json:"protocol"` // sip, h323
	sipalg.Record
	// Cause is Q.850's, of an H.323 call that ended with one.
	Cause int `json:"cause,omitempty"`
}

func sipRecord(r sipalg.Record) callRecord { return callRecord{Protocol: "sip", Record: r} }

// h323Record says of an H.323 call what SIP's records say; it has no status.
func h323Record(r h323.Record) callRecord {
	c := callRecord{Protocol: "h323", Cause: r.Cause, Record: sipalg.Record{
		ID: r.CallID, CallID: r.CallID, From: r.Caller, To: r.Called, Networks: r.Networks, Caller: r.From.Addr().String(), Callee: r.To.String(),
		Started: r.Started, Ended: r.Stopped, Reason: r.Reason,
	}}
	if !r.Connected.IsZero() {
		c.Answered, c.Seconds = &r.Connected, r.Stopped.Sub(r.Connected).Seconds()
	}
	for _, s := range r.Streams {
		c.Streams = append(c.Streams, sipalg.NewStreamRecord(s.Kind, s.Summary))
	}
	return c
}

// outcome is how the call ended, in a few words.
func (r callRecord) outcome() string {
	number := cmp.Or(r.Status, r.Cause)
	if number == 0 {
		return r.Reason
	}
	return strings.TrimSpace(strconv.Itoa(number) + " " + r.Reason)
}

// callRecords takes the records of all services to the file and to syslog; nil takes none.
type callRecords struct {
	file     *cdrFile
	queue    *cdrQueue
	receiver *cdrSyslog
	// writers are the services whose calls may still end.
	writers sync.WaitGroup
}

// buildRecords builds what the services below it in the table give their records to.
func buildRecords(_ context.Context, d *serviceDeps) (*service, error) {
	log := d.log.Named("cdr")
	file, err := openCDR(d.cfg)
	if err != nil {
		return nil, err
	}
	receiver, err := newCDRSyslog(d, log)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	c := &callRecords{file: file, queue: newCDRQueue(file, log), receiver: receiver}
	d.records = c
	return &service{serve: c.serve, reload: func(*config) error { return file.reopen() }}, nil
}

// writer announces a service that adds records; it calls done after its last one.
func (c *callRecords) writer() (done func()) {
	if c == nil {
		return func() {}
	}
	c.writers.Add(1)
	return c.writers.Done
}

func (c *callRecords) add(r callRecord) {
	if c != nil {
		c.queue.add(r)
		c.receiver.add(r)
	}
}

// serve writes until ctx and all writers have ended.
func (c *callRecords) serve(ctx context.Context) error {
	stop := make(chan struct{})
	var written sync.WaitGroup
	written.Go(func() { c.queue.run(stop) })
	written.Go(func() { c.receiver.run(stop) })
	<-ctx.Done()
	c.writers.Wait()
	close(stop)
	written.Wait()
	return c.file.Close()
}
