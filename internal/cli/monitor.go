// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/flow"
	"github.com/weft-net/weft/internal/rpc"
)

// maxEventLine bounds one event of another node's stream in bytes.
const maxEventLine = 64 << 10

type monitorFlags struct {
	kind, pod string
	tether    bool
}

func (a *app) monitorCommand() *cobra.Command {
	var f monitorFlags
	c := &cobra.Command{
		Use: "monitor", Short: "Show packets as the datapath sees them, live; drops with their reason", Args: cobra.NoArgs,
		Example: "  weft monitor --type drop\n  weft monitor --pod default/web-0 -o json",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.monitor(cmd.Context(), f) },
	}
	c.Flags().StringVar(&f.kind, "type", "", "only events of this type: drop or trace")
	c.Flags().StringVar(&f.pod, "pod", "", "only events of this pod: NAMESPACE/NAME, or NAME in any namespace")
	c.Flags().BoolVar(&f.tether, "until-stdin-closes", false, "end when the standard input does")
	_ = c.Flags().MarkHidden("until-stdin-closes") // ends the far side of a monitor from the laptop
	return c
}

func (a *app) monitor(ctx context.Context, f monitorFlags) error {
	switch flow.Type(f.kind) {
	case "", flow.TypeDrop, flow.TypeTrace:
	default:
		return fmt.Errorf("--type %q: give drop or trace", f.kind)
	}
	if a.opts.output == "yaml" {
		return errors.New("monitor: --output is table (one line an event) or json")
	}
	p := &eventPrinter{w: a.Out, json: a.opts.output == "json"}
	if !a.onNode() {
		return a.monitorFleet(ctx, f, p)
	}
	if f.tether {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		go func() { // ends with the process: reads of the standard input cannot be interrupted
			_, _ = io.Copy(io.Discard, a.In)
			cancel()
		}()
	}
	c := rpc.NewClient(a.paths.socket)
	defer c.Close()
	return c.Monitor(ctx, flow.Filter{Type: flow.Type(f.kind), Pod: f.pod}, p.print)
}

// monitorFleet merges the streams of all nodes until ^C or until the last ends.
func (a *app) monitorFleet(ctx context.Context, f monitorFlags, p *eventPrinter) error {
	fl, err := a.fleet(ctx)
	if err != nil {
		return err
	}
	args := []string{"monitor", "-o", "json", "--until-stdin-closes"}
	if f.kind != "" {
		args = append(args, "--type", f.kind)
	}
	if f.pod != "" {
		args = append(args, "--pod", f.pod)
	}
	replies := make([]reply, len(fl.agents))
	var wg sync.WaitGroup
	for i, ag := range fl.agents {
		wg.Go(func() {
			replies[i] = reply{node: ag.node, err: fl.follow(ctx, ag, args, p)}
			if ctx.Err() != nil {
				replies[i].err = nil // ^C is the way to end a monitor
			}
		})
	}
	wg.Wait()
	return a.complain(replies)
}

// follow prints one node's events until its stream ends.
func (f *fleet) follow(ctx context.Context, ag agent, args []string, p *eventPrinter) error {
	if ag.why != "" {
		return errors.New(ag.why)
	}
	in, keepOpen := io.Pipe() // open as long as this side lives
	out, lines := io.Pipe()
	done := make(chan error, 1)
	stderr := &boundedBuffer{limit: 64 << 10}
	go func() {
		err := f.exec(ctx, ag, args, in, lines, stderr)
		if msg := lastLine(stderr.String()); err != nil && msg != "" {
			err = errors.New(msg)
		}
		_ = lines.CloseWithError(io.EOF)
		done <- err
	}()
	sc := bufio.NewScanner(out)
	sc.Buffer(make([]byte, 4096), maxEventLine)
	var perr error
	for perr == nil && sc.Scan() {
		var e flow.Event
		if perr = json.Unmarshal(sc.Bytes(), &e); perr == nil {
			e.Node = ag.node
			perr = p.print(&e)
		}
	}
	_ = out.CloseWithError(errors.Join(perr, sc.Err(), io.ErrClosedPipe))
	_ = keepOpen.Close()
	if err := errors.Join(perr, sc.Err()); err != nil {
		return err
	}
	return <-done
}

// eventPrinter prints events of several streams, one at a time.
type eventPrinter struct {
	mu   sync.Mutex
	w    io.Writer
	json bool
}

func (p *eventPrinter) print(e *flow.Event) error {
	var out []byte
	if p.json {
		var err error
		if out, err = json.Marshal(e); err != nil {
			return err
		}
	} else {
		out = []byte(flow.Text(e))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.w.Write(append(out, '\n'))
	return err
}
