// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/weft-net/weft/lab/internal/cgroup"
	"github.com/weft-net/weft/lab/internal/plan"
	"github.com/weft-net/weft/lab/internal/wire"
)

// AddNode adds a node. Without a name it gets the lowest free one, without a
// subnet the one that the plan gives to its number.
func AddNode(ctx context.Context, name, nodeName, subnet string, out io.Writer) error {
	return change(ctx, name, out, func(l *Lab) error {
		if nodeName == "" {
			for k := 1; k <= plan.MaxNode; k++ {
				nodeName = "n" + strconv.Itoa(k)
				if _, err := l.rec.Host(nodeName); err != nil {
					break
				}
			}
		}
		if _, err := l.rec.Host(nodeName); err == nil {
			return fmt.Errorf("node %s exists", nodeName)
		}
		n, err := l.rec.Options.NewNode(nodeName, subnet)
		if err != nil {
			return err
		}
		l.rec.Hosts = append(l.rec.Hosts, n)
		if err := l.dir.Save(l.rec); err != nil { // so that node rm finds it, should this fail
			return err
		}
		if err := l.attachHost(n); err != nil {
			return err
		}
		if err := l.applyRules(ctx); err != nil {
			return err
		}
		if err := l.startNode(ctx, n); err != nil {
			return err
		}
		if err := l.joinNodes(ctx, []plan.Host{n}); err != nil {
			return err
		}
		l.report.line("node %s is there", n.Name)
		return nil
	})
}

// RemoveNode ends a node and deletes its Node object.
func RemoveNode(ctx context.Context, name, nodeName string, out io.Writer) error {
	return change(ctx, name, out, func(l *Lab) error {
		n, err := l.node(nodeName)
		if err != nil {
			return err
		}
		client, err := l.cluster.NewClient(l.netns(l.cluster.Control.Name))
		if err != nil {
			return err
		}
		before, err := client.Nodes(ctx)
		if err != nil {
			return err
		}
		if err := l.endHost(ctx, n); err != nil {
			return err
		}
		if err := client.Delete(ctx, "/api/v1/nodes/"+n.Name); err != nil {
			return err
		}
		l.rec.RemoveHost(n.Name)
		if err := l.dropRoutes(n, before[n.Name].Spec.PodCIDRs); err != nil {
			return err
		}
		if err := l.applyRules(ctx); err != nil {
			return err
		}
		l.report.line("node %s is gone", n.Name)
		return nil
	})
}

// endHost ends a host's processes and takes away what belongs to it alone.
// The journal keeps its entries: taking away what is gone is no error.
func (l *Lab) endHost(ctx context.Context, h plan.Host) error {
	ctx, cancel := context.WithTimeout(ctx, downLimit)
	defer cancel()
	group, err := l.cgroup2()
	if err != nil {
		return err
	}
	if err := cgroup.Kill(ctx, filepath.Join(group, h.Name)); err != nil {
		return err
	}
	var errs []error
	for _, dir := range l.rec.Cgroups {
		errs = append(errs, cgroup.Remove(ctx, filepath.Join(dir, h.Name)))
	}
	errs = append(errs, wire.RemovePorts(l.netns(router), h), wire.DeleteNetns(l.netns(h.Name)), os.RemoveAll(l.hostDir(h.Name)))
	return errors.Join(errs...)
}
