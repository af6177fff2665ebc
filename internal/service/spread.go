// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"

	"github.com/weft-net/weft/internal/table"
)

// tableKey names a Maglev table of a Service: its frontends share one where they
// have the same backends.
type tableKey struct {
	choiceKey
	local bool
}

// algorithm returns how a Service spreads what comes from outside.
func (m *Model) algorithm(row *table.Service) string {
	switch {
	case m.cfg.Maglev.Annotations && row.Algorithm != "":
		return row.Algorithm
	case m.cfg.Maglev.Default:
		return table.AlgorithmMaglev
	}
	return table.AlgorithmRandom
}

// spreads says whether a frontend does that by a Maglev table. One backend needs none.
func (e *evaluation) spreads(c *claim, f *table.Frontend) bool {
	cfg := e.m.cfg.Maglev
	if c.typ == table.FrontendClusterIP || f.Key.Scope != table.ScopeExternal || e.m.algorithm(e.s.row) != table.AlgorithmMaglev {
		return false
	}
	switch n := len(f.Backends); {
	case n < 2:
		return true
	case n > cfg.Slots:
		e.crowded = append(e.crowded, f.Key.String())
		return false
	}
	key := tableKey{choiceKey{c.port, f.Key.Addr.Addr().Is6()}, f.Flags&table.FrontendLocal != 0}
	room, asked := e.tables[key]
	if !asked {
		has, _ := e.countTables()
		room = e.m.tables+has < cfg.MaxTables
		e.tables[key] = room
	}
	return room
}

// countTables tells how many tables the rows need, and how many they cannot get.
func (e *evaluation) countTables() (has, refused int) {
	for _, room := range e.tables {
		if room {
			has++
		} else {
			refused++
		}
	}
	return has, refused
}

// tableFindings names what is not spread as the Service says.
func (e *evaluation) tableFindings() (out []Finding) {
	cfg, row := e.m.cfg.Maglev, e.s.row
	say := func(kind Kind, format string, args ...any) {
		out = append(out, Finding{Kind: kind, Service: e.s.name, Message: fmt.Sprintf(format, args...)})
	}
	if _, n := e.countTables(); n > 0 {
		say(Overflow, "%d Maglev tables have no place, so that connections are spread at random: all %d are in use: raise bpf.lbMapMax, lower maglev.tableSize or give other Services the algorithm random",
			n, cfg.MaxTables)
	}
	if len(e.crowded) > 0 {
		say(Overflow, "%s has more backends than a Maglev table has slots (%d), so that connections are spread at random: raise maglev.tableSize, to a hundred times as many as there are backends",
			e.crowded[0], cfg.Slots)
	}
	if row != nil && len(e.rows) > 0 && row.Algorithm != "" && row.Algorithm != e.m.algorithm(row) {
		say(BadInput, "annotation service.cilium.io/lb-algorithm: %s is not looked at: set bpf.lbAlgorithmAnnotation=true (with nodePort.enabled=true), or remove it", row.Algorithm)
	}
	return out
}
