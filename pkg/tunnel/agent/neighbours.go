package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/streamhead"
)

// Neighbour is another device that the relay lets this one reach.
type Neighbour struct {
	ID     device.ID `json:"id"`
	Name   string    `json:"name"` // as the relay calls it
	Online bool      `json:"online"`
}

// maxNeighbours bounds what is read of the relay's answer, in octets.
const maxNeighbours = 4 << 20

// Neighbours asks the relay whom this device may reach, and who of them is attached there.
func (a *Agent) Neighbours(ctx context.Context) ([]Neighbour, error) {
	head, err := (streamhead.Head{Kind: streamhead.Presence}).MarshalBinary()
	if err != nil {
		return nil, err
	}
	s, err := a.openRelay(ctx, head, mux.OpenOptions{})
	if err != nil {
		return nil, fmt.Errorf("neighbours: %w", err)
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.SetReadDeadline(time.Unix(1, 0)) })()
	var list []Neighbour
	if err := json.NewDecoder(io.LimitReader(s, maxNeighbours)).Decode(&list); err != nil {
		return nil, fmt.Errorf("neighbours: %w", err)
	}
	return list, nil
}
