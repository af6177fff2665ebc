// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import "errors"

// whileItRuns measures an agent that has all Services.
func (b *bench) whileItRuns(a *agent) (err error) {
	many := b.most()
	if b.once["agent_rss_mib_"+many], err = a.rss(); err != nil {
		return err
	}
	b.once["map_memory_mib_"+many], err = a.mapMemory()
	return err
}

// whileProxyRuns does so with a kube-proxy.
func (b *bench) whileProxyRuns(side string, p *kubeProxy) error {
	rss, err := p.rss()
	b.once[side+"_rss_mib_"+b.most()] = rss
	return errors.Join(err)
}
