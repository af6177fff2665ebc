// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/internal/operator/kube"
)

// candidate runs for the lead, with a wire to the API server that can be cut.
type candidate struct {
	*kube.Elector

	cut  atomic.Bool
	ends atomic.Int64 // when it ended its last term, in Unix milliseconds
}

func (c *cluster) candidate(ctx context.Context, g *errgroup.Group, name string) *candidate {
	c.t.Helper()
	var cand candidate
	client, err := kube.NewClient(kube.Config{
		Server: c.URL, CredentialsDir: c.CredentialsDir, UserAgent: name, Log: slog.New(slog.DiscardHandler),
		Wrap: func(rt http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				if cand.cut.Load() {
					return nil, errors.New("the wire is cut")
				}
				return rt.RoundTrip(req)
			})
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(client.Close)
	cand.Elector = &kube.Elector{
		Client: client, Namespace: "kube-system", Identity: name, Log: slog.New(slog.DiscardHandler),
		Terms: kube.Terms{Lease: 3 * time.Second, Renew: 1500 * time.Millisecond, Retry: 100 * time.Millisecond},
	}
	g.Go(func() error {
		return cand.Run(ctx, func(ctx context.Context) error {
			<-ctx.Done()
			cand.ends.Store(time.Now().UnixMilli())
			return nil
		})
	})
	return &cand
}

// Fault: a leader that was cut off is never replaced, or goes on working; or it
// does not return when it can.
func testLeaderCutOff(t *testing.T, c *cluster) {
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	defer func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	}()
	a := c.candidate(ctx, &g, "a")
	eventually(t, "a leads", 10*time.Second, a.Leads)
	b := c.candidate(ctx, &g, "b")
	a.cut.Store(true)
	eventually(t, "b leads", 20*time.Second, b.Leads)
	took := time.Now().UnixMilli()
	if ended := a.ends.Load(); ended == 0 || ended > took {
		t.Errorf("a ended its work at %d, after b had begun at %d", ended, took)
	}
	a.cut.Store(false)
	b.cut.Store(true)
	eventually(t, "a leads again", 20*time.Second, a.Leads)
}
