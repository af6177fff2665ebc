// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"
)

// poll is how often a wait looks.
const poll = 200 * time.Millisecond

// waitFor looks until ok, and else says what did not come up and shows what
// the log says about it.
func waitFor(ctx context.Context, limit time.Duration, what, logFile string, ok func(context.Context) (bool, string)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t := time.NewTicker(poll)
	defer t.Stop()
	reason := "no answer"
	for {
		done, why := ok(ctx)
		if done {
			return nil
		}
		if ctx.Err() == nil {
			reason = why // later ones only say that time is up
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("interrupted while waiting for %s", what)
			}
			return fmt.Errorf("%s: not up within %s: %s%s", what, limit, reason, excerpt(logFile))
		case <-t.C:
		}
	}
}

const (
	excerptErrors = 6
	excerptLast   = 8
	excerptBytes  = 64 << 10
	excerptWidth  = 400
)

// excerpt shows the last errors of a log and its end.
func excerpt(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Sprintf("\n(no log: %v)", err)
	}
	b = b[max(0, len(b)-excerptBytes):]
	// klog writes E or F and the date, containerd level=error.
	bad := regexp.MustCompile(`^[EF][0-9]{4} |level=(error|fatal)|"level":"(error|fatal)"|^(panic|fatal error):`)
	var worst, last []string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimRight(line, "\n")
		line = line[:min(len(line), excerptWidth)]
		if bad.MatchString(line) {
			worst = append(worst, line)
		}
		last = append(last, line)
	}
	return fmt.Sprintf("\n--- last errors in %s\n%s\n--- its end\n%s", path, ending(worst, excerptErrors), ending(last, excerptLast))
}

func ending(lines []string, n int) string {
	if len(lines) == 0 {
		return "(none)"
	}
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
