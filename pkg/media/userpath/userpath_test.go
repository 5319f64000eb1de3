package userpath

import (
	"testing"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/pathtest"
)

func newPath(t *testing.T) media.Path {
	t.Helper()
	p, err := New(0)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPath(t *testing.T) { pathtest.Run(t, newPath) }
