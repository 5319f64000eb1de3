package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"edged.dev/edged/pkg/media"
)

// TestStreamFindings: the streams that could be faster are named first, and the list ends somewhere.
func TestStreamFindings(t *testing.T) {
	var list []media.Info
	for i := range 15 {
		list = append(list, media.Info{Ends: [2]media.EndInfo{
			{Local: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(50000+i)), Path: "tc"},
			{Local: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), uint16(50000+i)), Path: "user", Why: "reasons"},
		}})
	}
	got := streamFindings(list)
	if len(got) != 1+maxStreams+1 || !strings.Contains(got[0].Text, "30 streams, 15 of them") {
		t.Fatalf("%d findings, the first is %+v", len(got), got[0])
	}
	for i := range 15 {
		if want := fmt.Sprintf("stream 198.51.100.1:%d", 50000+i); got[1+i].About != want || got[1+i].Text != "carried by user: reasons" {
			t.Errorf("finding %d is %+v", 1+i, got[1+i])
		}
	}
	if last := got[len(got)-1].Text; !strings.HasPrefix(last, "10 more") {
		t.Errorf("the last is %q", last)
	}
}
