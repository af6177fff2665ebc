// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/lab/internal/state"
	"github.com/weft-net/weft/lab/internal/wire"
)

// initRecord identifies PID 1 of a host from outside.
type initRecord struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot: a reused pid has another
}

// Start launches a host and returns once its PID 1 exists. The process is
// born in the host's cgroup2 group, so that even a host whose launcher dies
// now is found by Kill.
func Start(s *Spec, netnsPath string) error {
	if err := os.MkdirAll(filepath.Join(s.Dir, "log"), 0o755); err != nil {
		return fmt.Errorf("host %s: %w", s.Hostname, err)
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("host %s: %w", s.Hostname, err)
	}
	specPath := filepath.Join(s.Dir, "host.json")
	if err := state.WriteFile(specPath, b, 0o600); err != nil {
		return err
	}
	group, err := openGroup(s)
	if err != nil {
		return err
	}
	defer group.Close()
	out, err := os.OpenFile(filepath.Join(s.Dir, "log", "init.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("host %s: %w", s.Hostname, err)
	}
	defer out.Close()
	cmd := exec.Command("/proc/self/exe", Verb, specPath, "1") //nolint:noctx // it outlives us
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", out, out
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd()),
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	if err := wire.In(netnsPath, cmd.Start); err != nil {
		return fmt.Errorf("host %s: start: %w", s.Hostname, err)
	}
	go func() { _ = cmd.Wait() }() // reaps it, should it end before this process does
	start, err := startTime(cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("host %s: ended at once, see %s", s.Hostname, out.Name())
	}
	b, err = json.Marshal(initRecord{cmd.Process.Pid, start})
	if err != nil {
		return fmt.Errorf("host %s: %w", s.Hostname, err)
	}
	return state.WriteFile(filepath.Join(s.Dir, "init.json"), b, 0o600)
}

func openGroup(s *Spec) (*os.File, error) {
	for _, c := range s.Cgroups {
		if c.V2 {
			f, err := os.Open(c.Dir)
			if err != nil {
				return nil, fmt.Errorf("host %s: %w", s.Hostname, err)
			}
			return f, nil
		}
	}
	return nil, fmt.Errorf("host %s: no cgroup2 group", s.Hostname)
}

// startTime is field 22 of /proc/PID/stat (proc(5)).
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	s := string(b)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(fields) < 20 || fields[0] == "Z" {
		return 0, errors.New("process has ended")
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// InitPid finds PID 1 of a running host, as the machine numbers it.
func InitPid(dir string) (int, error) {
	name := filepath.Base(dir)
	b, err := os.ReadFile(filepath.Join(dir, "init.json"))
	if err != nil {
		return 0, fmt.Errorf("host %s was not started", name)
	}
	var r initRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return 0, fmt.Errorf("host %s: init.json: %w", name, err)
	}
	start, err := startTime(r.Pid)
	if err != nil || start != r.Start {
		return 0, fmt.Errorf("host %s is not running, see %s", name, filepath.Join(dir, "log", "init.log"))
	}
	return r.Pid, nil
}
