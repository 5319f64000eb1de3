package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// captureMedia asks for the media of a call and writes it as it comes.
func (c *apiClient) captureMedia(cmd *cobra.Command, path string, f captureFlags) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
	defer stop()
	q := url.Values{"for": {f.time.String()}, "packets": {strconv.Itoa(f.packets)}, "bytes": {strconv.Itoa(f.bytes)}}
	c.http.Timeout = 0
	resp, err := c.request(ctx, http.MethodPost, path+"?"+q.Encode(), http.NoBody)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // the status says enough
		return fmt.Errorf("%s: %d %s", path, resp.StatusCode, strings.TrimSpace(string(why)))
	}
	out := cmd.OutOrStdout()
	if f.file != "-" {
		file, err := os.OpenFile(f.file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		defer file.Close()
		out = file
	}
	packets, err := copyBlocks(out, resp.Body)
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("%s: %w", path, err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: %d packets\n", f.file, packets)
	return nil
}

// maxBlock bounds a block of pcapng: a datagram and what is said of it.
const maxBlock = 1 << 20

// copyBlocks copies whole blocks of pcapng only, so that a file is in order wherever it ends, and counts the packets.
func copyBlocks(w io.Writer, from io.Reader) (packets int, err error) {
	r := bufio.NewReaderSize(from, maxBlock)
	for {
		head, err := r.Peek(8)
		if err != nil {
			if errors.Is(err, io.EOF) && len(head) == 0 {
				return packets, nil
			}
			return packets, err
		}
		n := binary.LittleEndian.Uint32(head[4:])
		if n < 12 || n > maxBlock {
			return packets, fmt.Errorf("a block of %d octets", n)
		}
		b, err := r.Peek(int(n))
		if err != nil {
			return packets, err
		}
		if binary.LittleEndian.Uint32(b) == 6 {
			packets++
		}
		if _, err := w.Write(b); err != nil {
			return packets, err
		}
		if _, err := r.Discard(int(n)); err != nil {
			return packets, err
		}
	}
}
