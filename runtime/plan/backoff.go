package plan

import "time"

// The bounds of Backoff: the first try comes at once, so that a single crash is
// hardly noticed, and the pause never grows beyond a minute.
const (
	firstPause = 200 * time.Millisecond
	maxPause   = time.Minute
)

// Backoff returns the pause before try number attempt, counted from 1 since the
// last progress: 0.2, 1, 2, 4, ... 60 seconds.
func Backoff(attempt int) time.Duration {
	if attempt <= 1 {
		return firstPause
	}
	if attempt > 7 {
		return maxPause
	}
	return min(time.Second<<(attempt-2), maxPause)
}
