// SPDX-License-Identifier: Apache-2.0

// Package plugin is the CNI plugin (specification 1.1) that the container
// runtime executes. It checks what it is given, asks the agent, and answers in
// the version that was asked for. All work is the agent's.
//
// It has a dispatcher of its own instead of the CNI library's, which looks at
// the network namespace only after ADD is done, fails a DEL whose namespace is
// the caller's, and cannot be tested without a process.
package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/weft-net/weft/internal/cni"
)

// maxStdin bounds the network configuration in bytes.
const maxStdin = cni.MaxMessage / 2

// Env is the world of one execution. Main fills it from the process.
type Env struct {
	Getenv          func(string) string
	Stdin           io.Reader
	Stdout, Stderr  io.Writer
	Socket          string
	Queue           cni.Queue
	UnreachableFile string
}

// Run executes CNI_COMMAND and returns the exit code: 0, or 1 with an error
// object on stdout.
func Run(ctx context.Context, env Env) int {
	var out bytes.Buffer
	if err := run(ctx, env, &out); err != nil {
		var known *cni.Error
		if !errors.As(err, &known) {
			known = &cni.Error{Code: cni.CodeInternal, Msg: err.Error()}
		}
		return printError(env, known)
	}
	if _, err := env.Stdout.Write(out.Bytes()); err != nil {
		fmt.Fprintf(env.Stderr, "weft-cni: result: %v\n", err)
		return 1
	}
	return 0
}

func printError(env Env, e *cni.Error) int {
	b, err := json.Marshal(struct {
		CNIVersion string `json:"cniVersion"`
		*cni.Error
	}{newest(), e})
	if err == nil {
		_, err = env.Stdout.Write(append(b, '\n'))
	}
	if err != nil {
		fmt.Fprintf(env.Stderr, "weft-cni: %v (%v)\n", e, err)
	}
	return 1
}

func newest() string {
	vs := cni.SupportedVersions()
	return vs[len(vs)-1]
}

// limits of the whole of a command, and of the part of it that is spent on
// waiting for an agent to come (back). Kubelet's own limit is 2 minutes.
var limits = map[string]struct {
	total, dial time.Duration
	since       string // first CNI version that has the command
}{
	"ADD":    {30 * time.Second, 20 * time.Second, "0.3.0"},
	"DEL":    {15 * time.Second, 1 * time.Second, "0.3.0"},
	"CHECK":  {30 * time.Second, 10 * time.Second, "0.4.0"},
	"GC":     {60 * time.Second, 10 * time.Second, "1.1.0"},
	"STATUS": {5 * time.Second, 2 * time.Second, "1.1.0"},
}

func run(ctx context.Context, env Env, out io.Writer) error {
	cmd := env.Getenv("CNI_COMMAND")
	switch _, known := limits[cmd]; {
	case cmd == "VERSION":
		return printVersion(out)
	case cmd == "":
		return &cni.Error{
			Code: cni.CodeEnvironment, Msg: "CNI_COMMAND is not set",
			Details: "weft-cni is executed by the container runtime; see https://www.cni.dev/docs/spec/",
		}
	case !known:
		return &cni.Error{
			Code: cni.CodeEnvironment, Msg: fmt.Sprintf("CNI_COMMAND %q is unknown", cmd),
			Details: "ADD, CHECK, DEL, GC, STATUS and VERSION are served",
		}
	}
	req, err := environment(cmd, env.Getenv)
	if err != nil {
		return err
	}
	stdin, err := io.ReadAll(io.LimitReader(env.Stdin, maxStdin+1))
	if err != nil {
		return &cni.Error{Code: cni.CodeIO, Msg: fmt.Sprintf("network configuration on stdin: %v", err)}
	}
	conf, err := ParseConf(stdin)
	if err != nil {
		return err
	}
	if older(conf.CNIVersion, limits[cmd].since) {
		return &cni.Error{
			Code: cni.CodeVersion, Msg: fmt.Sprintf("network %s: %s is not part of CNI %s", conf.Name, cmd, conf.CNIVersion),
			Details: "it came with " + limits[cmd].since,
		}
	}
	ctx, cancel := context.WithTimeout(ctx, limits[cmd].total)
	defer cancel()
	c := &client{env: env, dialFor: limits[cmd].dial}
	switch cmd {
	case "ADD":
		return add(ctx, c, req, conf, out)
	case "DEL":
		return del(ctx, c, req)
	case "CHECK":
		return check(ctx, c, req, conf)
	case "GC":
		return gc(ctx, c, req, conf)
	default:
		return status(ctx, c, req)
	}
}

// gc asks for all to go but what the list has. Without one, all pods of the node
// would.
func gc(ctx context.Context, c *client, req cni.Request, conf *Conf) error {
	if conf.Valid == nil {
		return &cni.Error{
			Code: cni.CodeConfig, Msg: fmt.Sprintf("network %s: GC without cni.dev/valid-attachments: nothing was deleted", conf.Name),
			Details: "the runtime passes the list of attachments to keep; an empty list stands for none",
		}
	}
	req.Valid = conf.Valid
	_, err := c.ask(ctx, req)
	return err
}

func printVersion(out io.Writer) error {
	return json.NewEncoder(out).Encode(struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{newest(), cni.SupportedVersions()})
}

func add(ctx context.Context, c *client, req cni.Request, conf *Conf, out io.Writer) error {
	if err := otherNetns(c.env.Getenv, req.Netns); err != nil {
		return err
	}
	prev, err := conf.Previous()
	if err != nil {
		return err
	}
	resp, err := c.ask(ctx, req)
	if err != nil {
		return err
	}
	if resp.Result == nil {
		return &cni.Error{Code: cni.CodeInternal, Msg: "the agent answered ADD without a result", Details: "are weft-cni and the agent of one version?"}
	}
	return printResult(out, conf, prev, req, resp.Result)
}

func check(ctx context.Context, c *client, req cni.Request, conf *Conf) error {
	prev, err := conf.Previous()
	if err != nil {
		return err
	}
	if prev == nil {
		return &cni.Error{
			Code: cni.CodeConfig, Msg: fmt.Sprintf("network %s: CHECK without prevResult", conf.Name),
			Details: "the runtime passes the result of ADD",
		}
	}
	req.PrevIPs = previousIPs(prev, req)
	_, err = c.ask(ctx, req)
	return err
}
