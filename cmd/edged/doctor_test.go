package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/fastpath"
)

func TestExamineHelpers(t *testing.T) {
	for _, tt := range []struct {
		name    string
		modules fstest.MapFS
		want    fastpath.Level
	}{
		{"none", fstest.MapFS{"veth/initstate": {}}, fastpath.OK},
		{"built in", fstest.MapFS{"nf_conntrack_sip/parameters/ports": {}}, fastpath.OK},
		{"loaded", fstest.MapFS{"nf_nat_sip/initstate": {}}, fastpath.Warn},
	} {
		if got := examineHelpers(tt.modules); got.Level != tt.want {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
}

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
