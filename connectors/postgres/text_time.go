package main

import (
	"bytes"
	"math"
	"math/bits"
	"strconv"

	"github.com/millrace-io/millrace/plugins/sdk"
)

const (
	microsPerDay = 86_400_000_000
	// The instants that the reference connector uses for infinity.
	infinityMicros         = 9223372036825200000
	negativeInfinityMicros = -9223372036832400000
)

// special tells finite values from the two infinities.
type special int8

const (
	finite special = iota
	infinite
	negativeInfinite
)

// clock is a time of day; micros may be a whole day, for 24:00.
type clock struct{ micros int64 }

// scanner reads the parts of a temporal text.
type scanner struct {
	b   []byte
	bad bool
}

// number reads digits, at least least of them.
func (s *scanner) number(least int) int64 {
	var n int64
	i := 0
	for i < len(s.b) && i < 9 && s.b[i] >= '0' && s.b[i] <= '9' {
		n = n*10 + int64(s.b[i]-'0')
		i++
	}
	if i < least {
		s.bad = true
	}
	s.b = s.b[i:]
	return n
}

func (s *scanner) skip(c byte) {
	if len(s.b) == 0 || s.b[0] != c {
		s.bad = true
		return
	}
	s.b = s.b[1:]
}

func (s *scanner) next(c byte) bool {
	if len(s.b) > 0 && s.b[0] == c {
		s.b = s.b[1:]
		return true
	}
	return false
}

// fraction reads up to six digits after a point as microseconds.
func (s *scanner) fraction() int64 {
	if !s.next('.') {
		return 0
	}
	var n int64
	i := 0
	for ; i < 6; i++ {
		n *= 10
		if len(s.b) > 0 && s.b[0] >= '0' && s.b[0] <= '9' {
			n += int64(s.b[0] - '0')
			s.b = s.b[1:]
		}
	}
	return n
}

func (s *scanner) clock() int64 {
	h := s.number(2)
	s.skip(':')
	m := s.number(2)
	var sec int64
	if s.next(':') {
		sec = s.number(2)
	}
	return ((h*60+m)*60+sec)*1_000_000 + s.fraction()
}

// date reads year, month and day; an era may follow at the end of the text.
func (s *scanner) date() (year, month, day int64) {
	year = s.number(1)
	s.skip('-')
	month = s.number(2)
	s.skip('-')
	return year, month, s.number(2)
}

var (
	beforeChrist = []byte(" BC")
	infinityText = []byte("infinity")
	minusInfText = []byte("-infinity")
)

func specialOf(b []byte) special {
	switch {
	case len(b) == 0 || b[0] != 'i' && b[0] != '-':
		return finite
	case bytes.Equal(b, infinityText):
		return infinite
	case bytes.Equal(b, minusInfText):
		return negativeInfinite
	}
	return finite
}

// daysOf counts days since 1970 in the proleptic Gregorian calendar; year 0 is
// 1 BC.
func daysOf(y, m, d int64) int64 {
	if m <= 2 {
		y--
	}
	era := y / 400
	if y < 0 {
		era = (y - 399) / 400
	}
	yearOfEra := y - era*400
	dayOfYear := (153*((m+9)%12)+2)/5 + d - 1
	return era*146097 + yearOfEra*365 + yearOfEra/4 - yearOfEra/100 + dayOfYear - 719468
}

// civil is the inverse of daysOf.
func civil(days int64) (y, m, d int64) {
	days += 719468
	era := days / 146097
	if days < 0 {
		era = (days - 146096) / 146097
	}
	dayOfEra := days - era*146097
	yearOfEra := (dayOfEra - dayOfEra/1460 + dayOfEra/36524 - dayOfEra/146096) / 365
	dayOfYear := dayOfEra - (365*yearOfEra + yearOfEra/4 - yearOfEra/100)
	mp := (5*dayOfYear + 2) / 153
	d = dayOfYear - (153*mp+2)/5 + 1
	m = (mp+2)%12 + 1
	y = yearOfEra + era*400
	if m <= 2 {
		y++
	}
	return y, m, d
}

// parseDate returns days since 1970.
func parseDate(b []byte) (int64, special, error) {
	if sp := specialOf(b); sp != finite {
		return 0, sp, nil
	}
	bc := bytes.HasSuffix(b, beforeChrist)
	s := scanner{b: bytes.TrimSuffix(b, beforeChrist)}
	y, m, d := s.date()
	if s.bad || len(s.b) > 0 {
		return 0, finite, errSyntax
	}
	if bc {
		y = 1 - y
	}
	return daysOf(y, m, d), finite, nil
}

// instant is a timestamp split so that it cannot overflow.
type instant struct{ days, micros int64 }

// parseTimestamp reads a timestamp, with or without the zone +00.
func parseTimestamp(b []byte) (instant, special, error) {
	if sp := specialOf(b); sp != finite {
		return instant{}, sp, nil
	}
	bc := bytes.HasSuffix(b, beforeChrist)
	s := scanner{b: bytes.TrimSuffix(b, beforeChrist)}
	y, m, d := s.date()
	s.skip(' ')
	micros := s.clock()
	offset := s.zone()
	if s.bad || len(s.b) > 0 {
		return instant{}, finite, errSyntax
	}
	if bc {
		y = 1 - y
	}
	days := daysOf(y, m, d)
	micros -= offset
	if micros < 0 {
		days--
		micros += microsPerDay
	} else if micros >= microsPerDay {
		days++
		micros -= microsPerDay
	}
	return instant{days, micros}, finite, nil
}

// zone reads +hh[:mm[:ss]] as microseconds east, if there is one.
func (s *scanner) zone() int64 {
	if len(s.b) == 0 {
		return 0
	}
	sign := int64(1)
	if s.next('-') {
		sign = -1
	} else {
		s.skip('+')
	}
	seconds := s.number(1) * 3600
	if s.next(':') {
		seconds += s.number(2) * 60
		if s.next(':') {
			seconds += s.number(2)
		}
	}
	return sign * seconds * 1_000_000
}

// epochMicros is the instant in microseconds, or an error when that overflows.
func (t instant) epochMicros() (int64, error) {
	high, low := bits.Mul64(uint64(max(t.days, -t.days)), microsPerDay)
	if high != 0 || low > math.MaxInt64 {
		return 0, errRange
	}
	n := int64(low)
	if t.days < 0 {
		n = -n
	}
	sum := n + t.micros
	if n > 0 && sum < 0 {
		return 0, errRange
	}
	return sum, nil
}

func floorDiv(n, by int64) int64 {
	q := n / by
	if n%by < 0 {
		q--
	}
	return q
}

func convertDate(b []byte, _ *arena) (sdk.Value, error) {
	days, sp, err := parseDate(b)
	switch {
	case err != nil:
		return sdk.Null, err
	case sp == infinite:
		return sdk.Int32(math.MaxInt32), nil
	case sp == negativeInfinite:
		return sdk.Int32(math.MinInt32), nil
	}
	return sdk.Int32(int32(days)), nil
}

func convertIsoDate(b []byte, a *arena) (sdk.Value, error) {
	days, sp, err := parseDate(b)
	if err != nil {
		return sdk.Null, err
	}
	switch sp {
	case infinite:
		days = infinityMicros / microsPerDay
	case negativeInfinite:
		days = floorDiv(negativeInfinityMicros, microsPerDay)
	}
	out := appendDate(a.room(24), days)
	return sdk.String(str(a.keep(append(out, 'Z')))), nil
}

// appendDate prints an ISO date: years beyond 9999 with +, from 1 BC with -.
func appendDate(dst []byte, days int64) []byte {
	y, m, d := civil(days)
	switch {
	case y > 9999:
		dst = append(dst, '+')
	case y < 0:
		dst = append(dst, '-')
		y = -y
	}
	if y < 1000 {
		dst = append(dst, '0')
	}
	if y < 100 {
		dst = append(dst, '0')
	}
	if y < 10 {
		dst = append(dst, '0')
	}
	dst = strconv.AppendInt(dst, y, 10)
	dst = append(dst, '-')
	dst = append2(dst, m)
	dst = append(dst, '-')
	return append2(dst, d)
}

func append2(dst []byte, n int64) []byte { return append(dst, byte('0'+n/10), byte('0'+n%10)) }

// appendClock prints hh:mm:ss.
func appendClock(dst []byte, micros int64) []byte {
	sec := micros / 1_000_000
	dst = append2(dst, sec/3600)
	dst = append(dst, ':')
	dst = append2(dst, sec/60%60)
	dst = append(dst, ':')
	return append2(dst, sec%60)
}

// appendFraction prints a point and digits, or only as many as are not zero when
// digits is negative.
func appendFraction(dst []byte, micros int64, digits int) []byte {
	f := micros % 1_000_000
	if digits == 0 || digits < 0 && f == 0 {
		return dst
	}
	dst = append(dst, '.')
	for i, unit := 0, int64(100_000); i < 6; i, unit = i+1, unit/10 {
		if digits >= 0 && i >= digits || digits < 0 && f == 0 {
			break
		}
		dst = append(dst, byte('0'+f/unit))
		f %= unit
	}
	return dst
}

func parseClock(b []byte) (int64, error) {
	s := scanner{b: b}
	n := s.clock()
	if s.bad || len(s.b) > 0 || n > microsPerDay {
		return 0, errSyntax
	}
	return n, nil
}

// convertTime scales a time of day: by 1000 for milliseconds, 1 for micro, -1000
// for nanoseconds.
func convertTime(divide int64, narrow bool) convert {
	return func(b []byte, _ *arena) (sdk.Value, error) {
		n, err := parseClock(b)
		switch {
		case err != nil:
			return sdk.Null, err
		case divide < 0:
			n *= -divide
		default:
			n /= divide
		}
		if narrow {
			return sdk.Int32(int32(n)), nil
		}
		return sdk.Int64(n), nil
	}
}

func convertIsoTime(b []byte, a *arena) (sdk.Value, error) {
	n, err := parseClock(b)
	if err != nil {
		return sdk.Null, err
	}
	n %= microsPerDay
	out := appendFraction(appendClock(a.room(20), n), n, -1)
	return sdk.String(str(a.keep(append(out, 'Z')))), nil
}

// convertTimestamp scales an instant like convertTime.
func convertTimestamp(divide int64) convert {
	return func(b []byte, _ *arena) (sdk.Value, error) {
		t, sp, err := parseTimestamp(b)
		if err != nil {
			return sdk.Null, err
		}
		n := int64(infinityMicros)
		switch sp {
		case finite:
			if n, err = t.epochMicros(); err != nil {
				return sdk.Null, err
			}
		case negativeInfinite:
			n = negativeInfinityMicros
		}
		if divide > 0 {
			return sdk.Int64(floorDiv(n, divide)), nil
		}
		switch {
		case sp == infinite:
			return sdk.Int64(math.MaxInt64), nil
		case sp == negativeInfinite:
			return sdk.Int64(math.MinInt64), nil
		case n > math.MaxInt64/1000 || n < math.MinInt64/1000:
			return sdk.Null, errRange
		}
		return sdk.Int64(n * 1000), nil
	}
}

func convertIsoTimestamp(b []byte, a *arena) (sdk.Value, error) {
	t, sp, err := parseTimestamp(b)
	if err != nil {
		return sdk.Null, err
	}
	switch sp {
	case infinite:
		t = splitMicros(infinityMicros)
	case negativeInfinite:
		t = splitMicros(negativeInfinityMicros)
	}
	out := append(appendDate(a.room(40), t.days), 'T')
	out = appendFraction(appendClock(out, t.micros), t.micros, -1)
	return sdk.String(str(a.keep(append(out, 'Z')))), nil
}

func splitMicros(n int64) instant {
	days := floorDiv(n, microsPerDay)
	return instant{days, n - days*microsPerDay}
}

// convertZonedTimestamp prints an instant in UTC with exactly digits digits of
// fraction.
func convertZonedTimestamp(digits int) convert {
	return func(b []byte, a *arena) (sdk.Value, error) {
		if out, ok := plainZoned(b, a, digits); ok {
			return sdk.String(str(out)), nil
		}
		t, sp, err := parseTimestamp(b)
		switch {
		case err != nil:
			return sdk.Null, err
		case sp != finite:
			return sdk.String(str(b)), nil
		}
		out := append(appendDate(a.room(40), t.days), 'T')
		out = appendFraction(appendClock(out, t.micros), t.micros, digits)
		return sdk.String(str(a.keep(append(out, 'Z')))), nil
	}
}

// plainZoned rewrites yyyy-mm-dd hh:mm:ss[.f]+00 without computing anything.
func plainZoned(b []byte, a *arena, digits int) ([]byte, bool) {
	const whole = len("2006-01-02 15:04:05")
	n := len(b)
	if n < whole+3 || b[4] != '-' || b[10] != ' ' || b[n-3] != '+' || b[n-2] != '0' || b[n-1] != '0' || b[whole-3] != ':' {
		return nil, false
	}
	fraction := b[whole : n-3]
	if len(fraction) > 0 && fraction[0] == '.' {
		fraction = fraction[1:]
	}
	if len(fraction) > digits {
		return nil, false
	}
	out := append(a.room(40), b[:whole]...)
	out[10] = 'T'
	if digits > 0 {
		out = append(append(out, '.'), fraction...)
		for range digits - len(fraction) {
			out = append(out, '0')
		}
	}
	return a.keep(append(out, 'Z')), true
}

// convertZonedTime shifts a time of day with a zone to UTC.
func convertZonedTime(b []byte, a *arena) (sdk.Value, error) {
	s := scanner{b: b}
	n := s.clock()
	n -= s.zone()
	if s.bad || len(s.b) > 0 {
		return sdk.Null, errSyntax
	}
	n = (n%microsPerDay + microsPerDay) % microsPerDay
	out := appendFraction(appendClock(a.room(20), n), n, -1)
	return sdk.String(str(a.keep(append(out, 'Z')))), nil
}

// interval is what Postgres keeps apart.
type interval struct {
	months, days int64
	micros       int64
	special      special
}

// parseInterval reads IntervalStyle=postgres: 1 year 2 mons 3 days 04:05:06.78,
// each part with a sign of its own.
func parseInterval(b []byte) (interval, error) {
	var iv interval
	if iv.special = specialOf(b); iv.special != finite {
		return iv, nil
	}
	s := scanner{b: b}
	for len(s.b) > 0 && !s.bad {
		s.next(' ')
		sign := int64(1)
		if s.next('-') {
			sign = -1
		} else {
			s.next('+')
		}
		n := s.long()
		if s.next(':') {
			minutes := s.number(2)
			var sec int64
			if s.next(':') {
				sec = s.number(2)
			}
			iv.micros = sign * (((n*60+minutes)*60+sec)*1_000_000 + s.fraction())
			continue
		}
		s.skip(' ')
		unit := s.word()
		switch {
		case bytes.HasPrefix(unit, []byte("year")):
			iv.months += sign * n * 12
		case bytes.HasPrefix(unit, []byte("mon")):
			iv.months += sign * n
		case bytes.HasPrefix(unit, []byte("day")):
			iv.days += sign * n
		default:
			s.bad = true
		}
	}
	if s.bad {
		return iv, errSyntax
	}
	return iv, nil
}

// long reads digits without the limit of number.
func (s *scanner) long() int64 {
	i := 0
	for i < len(s.b) && s.b[i] >= '0' && s.b[i] <= '9' {
		i++
	}
	n, err := parseInt(s.b[:i])
	s.bad = s.bad || err != nil
	s.b = s.b[i:]
	return n
}

func (s *scanner) word() []byte {
	i := 0
	for i < len(s.b) && s.b[i] != ' ' {
		i++
	}
	w := s.b[:i]
	s.b = s.b[i:]
	return w
}

// convertDuration makes microseconds, a month being 30.4375 days; what overflows
// is clamped.
func convertDuration(b []byte, _ *arena) (sdk.Value, error) {
	iv, err := parseInterval(b)
	switch {
	case err != nil:
		return sdk.Null, err
	case iv.special == infinite:
		return sdk.Int64(math.MaxInt64), nil
	case iv.special == negativeInfinite:
		return sdk.Int64(math.MinInt64), nil
	}
	const monthMicros = 30.4375 * microsPerDay // a whole number
	total := float64(iv.months)*monthMicros + float64(iv.days)*microsPerDay + float64(iv.micros)
	switch {
	case total >= math.MaxInt64:
		return sdk.Int64(math.MaxInt64), nil
	case total <= math.MinInt64:
		return sdk.Int64(math.MinInt64), nil
	}
	return sdk.Int64(iv.months*int64(monthMicros) + iv.days*microsPerDay + iv.micros), nil
}

// convertInterval prints all six parts, P1Y2M3DT4H5M6.78S.
func convertInterval(b []byte, a *arena) (sdk.Value, error) {
	iv, err := parseInterval(b)
	switch {
	case err != nil:
		return sdk.Null, err
	case iv.special != finite:
		return sdk.String(str(b)), nil
	}
	out := append(a.room(64), 'P')
	out = append(strconv.AppendInt(out, iv.months/12, 10), 'Y')
	out = append(strconv.AppendInt(out, iv.months%12, 10), 'M')
	out = append(strconv.AppendInt(out, iv.days, 10), 'D', 'T')
	out = append(strconv.AppendInt(out, iv.micros/3_600_000_000, 10), 'H')
	out = append(strconv.AppendInt(out, iv.micros/60_000_000%60, 10), 'M')
	sec := iv.micros % 60_000_000
	if sec < 0 {
		out = append(out, '-')
		sec = -sec
	}
	out = strconv.AppendInt(out, sec/1_000_000, 10)
	out = appendFraction(out, sec, -1)
	return sdk.String(str(a.keep(append(out, 'S')))), nil
}
