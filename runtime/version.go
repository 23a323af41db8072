package runtime

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// checkVersion refuses a version requirement that the one installed version does
// not meet. Requirements are Maven's: "1.2" and "[1.2]" mean exactly that,
// "[1.0,2.0)" is a range, "latest" and "" mean any (KIP-891).
func checkVersion(requirement, installed string) error {
	r := strings.TrimSpace(requirement)
	if r == "" || r == "latest" || r == installed {
		return nil
	}
	low, high, ok := strings.Cut(strings.Trim(r, "[]()"), ",")
	if !ok {
		high = low
	}
	closed := strings.HasPrefix(r, "[") || strings.HasPrefix(r, "(")
	if closed && !strings.HasSuffix(r, "]") && !strings.HasSuffix(r, ")") {
		return fmt.Errorf("%q is not a version or a range such as [1.0,2.0)", requirement)
	}
	above := low == "" || compareVersions(installed, low) > 0 || !strings.HasPrefix(r, "(") && compareVersions(installed, low) == 0
	below := high == "" || compareVersions(installed, high) < 0 || !strings.HasSuffix(r, ")") && compareVersions(installed, high) == 0
	if above && below {
		return nil
	}
	return fmt.Errorf("no version in %s is installed, only %s", requirement, installed)
}

// compareVersions compares dotted versions part by part, numbers as numbers.
func compareVersions(a, b string) int {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range max(len(as), len(bs)) {
		x, y := part0(as, i), part0(bs, i)
		n, errN := strconv.Atoi(x)
		m, errM := strconv.Atoi(y)
		c := cmp.Compare(x, y)
		if errN == nil && errM == nil {
			c = cmp.Compare(n, m)
		}
		if c != 0 {
			return c
		}
	}
	return 0
}

func part0(parts []string, i int) string {
	if i < len(parts) {
		return strings.TrimSpace(parts[i])
	}
	return "0"
}
