// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/weft-net/weft/test/bench/load"
)

// streams is an iperf3 server, and what runs clients against it.
type streams struct {
	v     *variant
	cpu   load.Processors
	ready chan struct{} // gets one each time the server waits for a client
}

// iperf3 has whole seconds only.
const streamFor = time.Second

func newStreams(v *variant) (*streams, error) {
	s := &streams{v: v, ready: make(chan struct{}, 1)}
	started := make(chan error, 1)
	go func() {
		// in ends when the server does: it is killed with the thread that started it.
		_ = v.server.In(func() error {
			err := load.Pin(load.ServerCPU)
			cmd := exec.Command("iperf3", "--server", "--forceflush")
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			out, e := cmd.StdoutPipe()
			if err = errors.Join(err, e); err == nil {
				err = cmd.Start()
			}
			if err == nil {
				s.cpu, err = load.NewProcessors(cmd.Process.Pid)
			}
			started <- err
			if err != nil {
				return err
			}
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if strings.HasPrefix(lines.Text(), "Server listening") {
					s.ready <- struct{}{}
				}
			}
			return cmd.Wait()
		})
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("iperf3: %w: apt-get install iperf3", err)
	}
	return s, nil
}

// report is what is needed of iperf3's.
type report struct {
	Error string
	End   struct {
		SumReceived struct {
			Bytes         float64
			BitsPerSecond float64 `json:"bits_per_second"`
		} `json:"sum_received"`
	}
}

// measure returns bits a second, and processor time for each bit.
func (s *streams) measure(conns int) (result, error) {
	select {
	case <-s.ready:
	case <-time.After(10 * time.Second):
		return result{}, errors.New("iperf3: the server does not get ready")
	}
	before, err := s.cpu.Used()
	if err != nil {
		return result{}, err
	}
	var out []byte
	var ended *exec.Cmd
	err = s.v.client.In(func() (err error) {
		if err := load.Pin(load.ClientCPU); err != nil {
			return err
		}
		ended = exec.Command("iperf3", "--client", s.v.addr.String(), "--time", strconv.Itoa(int(streamFor.Seconds())), "--interval", "0",
			"--parallel", strconv.Itoa(conns), "--json", "--connect-timeout", "3000")
		out, err = ended.Output()
		return err
	})
	var r report
	if e := json.Unmarshal(out, &r); e == nil && r.Error != "" {
		return result{}, errors.New("iperf3: " + r.Error)
	} else if err = errors.Join(err, e); err != nil {
		return result{}, fmt.Errorf("iperf3: %w", err)
	}
	after, err := s.cpu.Used()
	if err != nil {
		return result{}, err
	}
	if r.End.SumReceived.Bytes == 0 {
		return result{}, errors.New("iperf3: nothing got through")
	}
	used := after - before + ended.ProcessState.UserTime() + ended.ProcessState.SystemTime()
	return result{rate: r.End.SumReceived.BitsPerSecond, cpu: used.Seconds() / (8 * r.End.SumReceived.Bytes)}, nil
}
