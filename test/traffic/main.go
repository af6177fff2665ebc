// SPDX-License-Identifier: Apache-2.0

// Command traffic carries numbered datagrams and one long TCP stream between
// two places and says exactly what was lost. The kill test runs it between pods
// while it ends the agents under them.
//
//	traffic recv --port 9000
//	traffic send --to ADDRESS --port 9000 --rate 1000 --duration 20s
//
// send prints one Report as JSON, also when SIGTERM ends it early, and exits 1
// if anything was lost or reset.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Report is what one run of send saw.
type Report struct {
	To           string `json:"to"`
	Sent         uint64 `json:"sent"`         // datagrams
	Received     uint64 `json:"received"`     // distinct datagrams that arrived
	Lost         uint64 `json:"lost"`         // Sent - Received
	LongestGapMS int64  `json:"longestGapMs"` // between two datagrams, as the receiver saw it
	// Missing are the first few lost datagrams, in milliseconds since the start
	// of the run, which says what happened at the time.
	Missing []int64 `json:"missingMs,omitempty"`
	// Overflow counts datagrams that reached the receiver's host and found its
	// socket full: the machine was too busy, not the network at fault.
	Overflow       uint64    `json:"overflow"`
	Started        time.Time `json:"started"`
	TCPBytes       uint64    `json:"tcpBytes"`       // echoed and compared
	TCPResets      int       `json:"tcpResets"`      // the stream ended before its time
	LongestStallMS int64     `json:"longestStallMs"` // of the stream, one chunk there and back
	TCPError       string    `json:"tcpError,omitempty"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "traffic:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: traffic recv|send [flags]")
	}
	fs := flag.NewFlagSet(args[0], flag.ContinueOnError)
	to := fs.String("to", "", "address to send to")
	port := fs.Int("port", 9000, "UDP and TCP port")
	rate := fs.Int("rate", 1000, "datagrams per second")
	duration := fs.Duration("duration", 20*time.Second, "how long to send; at most 2h")
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "recv":
		return receive(ctx, *port)
	case "send":
		if *duration <= 0 || *duration > 2*time.Hour || *rate < 1 || *rate > 100000 {
			return errors.New("send: duration must be in (0, 2h], rate in [1, 100000]")
		}
		rep, err := send(ctx, *to, *port, *rate, *duration)
		if err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(rep); err != nil {
			return err
		}
		if rep.Lost > 0 || rep.TCPResets > 0 {
			return fmt.Errorf("send to %s: %d of %d datagrams lost, %d resets", *to, rep.Lost, rep.Sent, rep.TCPResets)
		}
		return nil
	}
	return fmt.Errorf("unknown verb %q: want recv or send", args[0])
}
