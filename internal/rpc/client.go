// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/weft-net/weft/internal/flow"
)

// MaxAnswer bounds an answer of the local API in bytes, as the client takes it.
// A conntrack table of half a million entries fits.
const MaxAnswer = 512 << 20

// ErrNoAgent says that no agent answers on the socket: it is absent, or nobody
// listens behind it.
var ErrNoAgent = errors.New("no agent answers")

// Client speaks to the agent of this node. It may be used concurrently.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client for the agent behind the unix socket at path.
// Nothing is opened before the first call.
func NewClient(socket string) *Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
	}
	return &Client{socket: socket, http: &http.Client{Transport: tr}}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Get fetches one of the Path constants and returns the body as the agent sent
// it. An error wraps ErrNoAgent where nobody answers.
func (c *Client) Get(ctx context.Context, path string) ([]byte, error) {
	body, err := c.open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, MaxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("agent %s: %w", path, err)
	}
	if len(b) > MaxAnswer {
		return nil, fmt.Errorf("agent %s: answer is larger than %d bytes", path, MaxAnswer)
	}
	return b, nil
}

// Fetch is Get with the answer decoded into a T.
func Fetch[T any](ctx context.Context, c *Client, path string) (T, error) {
	var out T
	b, err := c.Get(ctx, path)
	if err != nil {
		return out, err
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return out, fmt.Errorf("agent %s: answer: %w", path, err)
	}
	return out, nil
}

// Monitor calls fn with each event that the filter selects until the context
// ends (nil), the agent goes away (an error) or fn returns an error (that one).
func (c *Client) Monitor(ctx context.Context, f flow.Filter, fn func(*flow.Event) error) error {
	body, err := c.open(ctx, MonitorPath(f))
	if err != nil {
		return err
	}
	defer body.Close()
	dec := json.NewDecoder(bufio.NewReaderSize(body, 64<<10))
	for {
		var e flow.Event
		if err := dec.Decode(&e); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("agent %s: the stream ended, the agent may have stopped: %w", PathMonitor, err)
		}
		if err := fn(&e); err != nil {
			return err
		}
	}
}

// MonitorPath is PathMonitor with the query of the filter.
func MonitorPath(f flow.Filter) string {
	q := url.Values{}
	if f.Type != "" {
		q.Set("type", string(f.Type))
	}
	if f.Pod != "" {
		q.Set("pod", f.Pod)
	}
	if len(q) == 0 {
		return PathMonitor
	}
	return PathMonitor + "?" + q.Encode()
}

func (c *Client) open(ctx context.Context, path string) (io.ReadCloser, error) {
	// The host in the URL is only there because HTTP wants one.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://weft"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("agent %s: %w", path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return nil, fmt.Errorf("%w on %s: %w", ErrNoAgent, c.socket, op.Err)
		}
		return nil, fmt.Errorf("agent %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		msg, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return nil, fmt.Errorf("agent %s: %s: %s", path, resp.Status, strings.TrimSpace(string(msg)))
	}
	return resp.Body, nil
}
