// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"text/template"

	_ "embed"

	"github.com/weft-net/weft/lab/internal/build"
	"github.com/weft-net/weft/lab/internal/kube"
	"github.com/weft-net/weft/lab/internal/plan"
	"github.com/weft-net/weft/lab/internal/wire"
)

//go:embed coredns.yaml
var dnsManifest string

// installDNS applies CoreDNS, and waits for it where pods can start.
func (l *Lab) installDNS(ctx context.Context) error {
	t, err := template.New("coredns").Parse(dnsManifest)
	if err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	var manifest bytes.Buffer
	err = t.Execute(&manifest, map[string]string{
		"Image": build.CoreDNSImage, "Domain": plan.ClusterName, "Address4": plan.DNS4, "Address6": plan.DNS6,
	})
	if err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	if err := l.apply(ctx, &manifest); err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	if l.rec.Options.CNI != plan.CNIPtp || l.rec.Options.Proxy == plan.ProxyNone || l.rec.Options.Nodes == 0 {
		l.report.line("DNS is applied; its pods start with a network")
		return nil
	}
	client, err := l.cluster.NewClient(l.netns(l.cluster.Control.Name))
	if err != nil {
		return err
	}
	log := filepath.Join(l.hostDir(l.rec.Nodes()[0].Name), "log", "kubelet.log")
	err = waitFor(ctx, readyLimit, "DNS", log, func(ctx context.Context) (bool, string) {
		return client.DeploymentReady(ctx, "kube-system", "coredns")
	})
	if err != nil {
		return err
	}
	l.report.line("DNS answers")
	return nil
}

func (l *Lab) apply(ctx context.Context, manifest *bytes.Buffer) error {
	cmd := exec.CommandContext(ctx, l.cluster.Cache.Bin("kubernetes", "kubectl"),
		"--kubeconfig", l.cluster.Kubeconfig(kube.Admin), "apply", "-f", "-")
	var out bytes.Buffer
	cmd.Env = append(os.Environ(), "HOME=/root")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = manifest, &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := wire.In(l.netns(l.cluster.Control.Name), cmd.Run); err != nil {
		return fmt.Errorf("kubectl apply: %w: %s", err, out.String())
	}
	return nil
}
