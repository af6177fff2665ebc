// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	restartDelay = time.Second
	afterLimit   = 60 * time.Second
	afterPoll    = 50 * time.Millisecond
	logCheck     = 20 * time.Second
	maxLog       = 64 << 20 // bytes; one older file of the same size is kept
)

// ProgramState is what the supervisor reports about a program.
type ProgramState struct {
	Name     string    `json:"name"`
	Pid      int       `json:"pid"` // in the host's PID namespace; 0 when not running
	Starts   int       `json:"starts"`
	Since    time.Time `json:"since"`
	LastExit string    `json:"lastExit,omitempty"`
}

// StatusFile holds []ProgramState in the host's folder.
const StatusFile = "programs.json"

type supervisor struct {
	spec  *Spec
	log   *slog.Logger
	state []ProgramState
	due   []time.Time // when to start a program; zero: it runs
	t0    time.Time
}

// supervise is the main loop of PID 1. One goroutine owns everything; it also
// reaps orphans, so nothing else in this process may wait for children.
func supervise(s *Spec) error {
	v := &supervisor{spec: s, log: slog.New(slog.NewTextHandler(os.Stderr, nil)), t0: time.Now()}
	for _, p := range s.Programs {
		v.state = append(v.state, ProgramState{Name: p.Name})
		v.due = append(v.due, v.t0)
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGPIPE)
	logs := time.NewTicker(logCheck)
	defer logs.Stop()
	for {
		wake := time.NewTimer(v.startDue())
		select {
		case sig := <-signals:
			if sig == unix.SIGTERM {
				return nil // PID 1 ends, and all with it
			}
			v.reap()
		case <-wake.C:
		case <-logs.C:
			v.boundLogs()
		}
		wake.Stop()
	}
}

// startDue starts what is due and returns the time until the next.
func (v *supervisor) startDue() time.Duration {
	next := time.Hour
	for i, p := range v.spec.Programs {
		if v.due[i].IsZero() {
			continue
		}
		wait := time.Until(v.due[i])
		if wait <= 0 && v.blocked(p) {
			wait = afterPoll
		}
		if wait <= 0 {
			if wait = v.start(i, p); wait == 0 {
				continue
			}
		}
		next = min(next, wait)
	}
	return next
}

// blocked: the program's socket is not there yet. After a minute it is
// started anyway; its own log then tells what it misses.
func (v *supervisor) blocked(p Program) bool {
	if p.After == "" || time.Since(v.t0) > afterLimit {
		return false
	}
	_, err := os.Stat(p.After)
	return err != nil
}

func (v *supervisor) logPath(name string) string {
	return filepath.Join(v.spec.Dir, "log", name+".log")
}

// start returns 0, or when to try again.
func (v *supervisor) start(i int, p Program) time.Duration {
	pid, err := v.spawn(p)
	if err != nil {
		v.log.Error("program does not start", "program", p.Name, "error", err)
		v.due[i] = time.Now().Add(restartDelay)
		return restartDelay
	}
	v.due[i] = time.Time{}
	st := &v.state[i]
	st.Pid, st.Since = pid, time.Now()
	st.Starts++
	v.log.Info("program started", "program", p.Name, "pid", pid)
	v.report()
	return 0
}

func (v *supervisor) spawn(p Program) (int, error) {
	out, err := os.OpenFile(v.logPath(p.Name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	proc, err := os.StartProcess(p.Argv[0], p.Argv, &os.ProcAttr{
		Dir: "/", Env: p.Env, Files: []*os.File{null, out, out}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, err
	}
	pid := proc.Pid
	return pid, proc.Release() // reaped below, together with orphans
}

func (v *supervisor) reap() {
	changed := false
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if pid <= 0 || err != nil {
			break
		}
		for i := range v.state {
			if v.state[i].Pid != pid {
				continue
			}
			exit := fmt.Sprintf("exit status %d", ws.ExitStatus())
			if ws.Signaled() {
				exit = ws.Signal().String()
			}
			v.log.Warn("program ended", "program", v.state[i].Name, "how", exit)
			v.state[i].Pid, v.state[i].LastExit = 0, exit
			v.due[i] = time.Now().Add(restartDelay)
			changed = true
		}
	}
	if changed {
		v.report()
	}
}

func (v *supervisor) report() {
	b, err := json.Marshal(v.state)
	if err != nil {
		return
	}
	path := filepath.Join(v.spec.Dir, StatusFile)
	if err := os.WriteFile(path+".new", b, 0o644); err != nil {
		v.log.Error("status is not written", "error", err)
		return
	}
	if err := os.Rename(path+".new", path); err != nil {
		v.log.Error("status is not written", "error", err)
	}
}

// boundLogs keeps logs from filling the disk: the programs append, so a file
// may be cut under them.
func (v *supervisor) boundLogs() {
	for _, p := range v.spec.Programs {
		path := v.logPath(p.Name)
		st, err := os.Stat(path)
		if err != nil || st.Size() < maxLog {
			continue
		}
		if b, err := os.ReadFile(path); err == nil {
			_ = os.WriteFile(path+".1", b, 0o644)
		}
		if err := os.Truncate(path, 0); err != nil {
			v.log.Error("log is not cut", "program", p.Name, "error", err)
		}
	}
}
