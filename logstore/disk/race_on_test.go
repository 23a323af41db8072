//go:build race

package disk_test

// raceEnabled makes the exhaustive loops short: the detector is for the others.
const raceEnabled = true
