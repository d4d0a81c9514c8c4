package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// clients is the number of concurrent callers in rows with a target.
const clients = 64

// The targets.
const (
	barCreate     = 0.13 // of hello-world
	barCreateHalf = 25 * time.Millisecond
	barGet        = 0.45                   // of hello-world
	barPage       = 250 * time.Microsecond // of the service
	barPageHalf   = 5 * time.Millisecond
	barList       = 10 * time.Millisecond
	barFeed       = 25 * time.Millisecond
	barRebuild    = 0.30 // of the raw replay
	barStart      = 3 * time.Second
	barMemory     = 1024 // bytes per credential
)

func (b *bench) measure(ctx context.Context) (err error) {
	if b.hello, err = spawnChild(ctx, "hello"); err != nil {
		return err
	}
	defer b.hello.stop()
	if b.probe, err = spawnChild(ctx, "probe"); err != nil {
		return err
	}
	defer b.probe.stop()
	return b.each(ctx, nil, b.parts())
}

// row is a measurement that -only selects by its name, or several with a common setup.
type row struct {
	name  string
	title string   // of the section of the report that begins with it
	site  string   // folder of the new site that it needs; "" for the site of the part
	env   []string // of that site
	run   func(context.Context, *site) error
	rows  []row // after run
	after func(context.Context, *site) error
}

// parts lists all rows in the order in which they are measured. run of a part measures
// its rows that have none.
func (b *bench) parts() []row {
	return []row{
		{site: "commands", run: b.commands, rows: []row{{name: "create"}, {name: "probe"}}},
		{name: "peers", title: "Compared with a handwritten service on PostgreSQL", site: "peers", run: b.peers},
		{
			name: "slow-disk", title: "Where an fsync takes 1 ms more", site: "slow", env: []string{"CREDSTREAM_BENCH_FSYNC_DELAY=1ms"}, run: b.slowDisk,
		},
		{title: "Flows", site: "flows", run: b.flows, rows: []row{{name: "flows"}, {name: "in-use"}, {name: "bind"}, {name: "refusal"}, {name: "uses"}}},
		{title: "Identities and the elastic.io v2 surface", rows: []row{
			{name: "authorize", run: b.authorize},
			{site: "identities", rows: []row{{name: "oauth-clients", run: b.listClients}, {name: "v2-create", run: b.createV2}}},
		}},
		{title: "Secrets for flow engines, and tokens", rows: []row{
			{name: "resolve", site: "resolve", run: b.resolve},
			// A rejection by the provider counts after a tenth of the default timeout.
			{name: "revocation", site: "revocation", env: []string{"CREDSTREAM_REFRESH_PATIENCE=3s"}, run: b.revocation},
			{name: "herd", run: b.herd},
			{name: "renewals", run: b.renewals},
		}},
		{title: "Batches, search, export and import, throttling", site: "bulk", rows: []row{
			{name: "bulk", run: b.bulk, rows: []row{{name: "search", run: b.searches}}},
			{name: "transfer", run: b.transfer},
			{name: "throttle", run: b.throttle},
			{name: "throttle-processes", run: b.throttleProcesses},
		}},
		{title: "With " + thousands(b.credentials) + " credentials", site: "large", run: b.large, after: b.reopen, rows: []row{
			{name: "memory"},
			{name: "get", run: b.get},
			{name: "rebuild", run: b.rebuild},
			{name: "start", run: b.starts},
			{name: "list", run: b.lists},
			{name: "feed", run: b.feed},
		}},
	}
}

// names lists the names of rows and of nested ones.
func names(rows []row) (list []string) {
	for _, r := range rows {
		if r.name != "" {
			list = append(list, r.name)
		}
		list = append(list, names(r.rows)...)
	}
	return list
}

// each measures the selected rows. s is the site of their part.
func (b *bench) each(ctx context.Context, s *site, rows []row) error {
	for _, r := range rows {
		if !b.wants(names([]row{r})...) {
			continue
		}
		if err := b.measureRow(ctx, s, r); err != nil {
			return fmt.Errorf("%s: %w", cmp.Or(r.name, r.site, r.title), err)
		}
	}
	return nil
}

func (b *bench) measureRow(ctx context.Context, s *site, r row) (err error) {
	if r.title != "" {
		b.report.part(r.title)
	}
	if r.site != "" {
		if s, err = newSite(ctx, b.bin, filepath.Join(b.dir, r.site), b.probe.line, r.env...); err != nil {
			return err
		}
		defer func() { _ = s.stop() }() // again, after an error
	}
	for _, step := range []func(context.Context, *site) error{
		r.run, func(ctx context.Context, s *site) error { return b.each(ctx, s, r.rows) }, r.after,
	} {
		if step == nil {
			continue
		}
		if err := step(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// rate measures calls in a closed loop and adds a row for them.
func (b *bench) rate(ctx context.Context, what string, n int, open func(int) (caller, error)) error {
	l, err := closed(ctx, n, b.measured(), open)
	if err == nil {
		b.report.add(what, perSecond(l.rate), latencies(l))
	}
	return err
}

// half measures calls at half of their maximum rate, and adds a row for them.
func (b *bench) half(ctx context.Context, what string, rate float64, open func(int) (caller, error)) error {
	l, err := paced(ctx, clients, rate/2, b.time, open)
	if err == nil {
		b.report.add(what, perSecond(l.rate), latencies(l))
	}
	return err
}

// cost adds a row for the CPU time of the service per call of the row above.
func (b *bench) cost(cpu time.Duration) {
	b.report.add("CPU time", micros(cpu), "")
}

func (b *bench) measured() size { return size{warm: b.time / 4, time: b.time} }

// helloWorld drives the hello-world with n clients.
func (b *bench) helloWorld(ctx context.Context, n int) (load, error) {
	request := getRequest(nil, "/", "")
	return closed(ctx, n, b.measured(), overHTTP(b.hello.line, func(_ int, c *wire) func() error {
		return func() error { return c.expect(200, "hello-world", request) }
	}))
}

func (b *bench) publish(ctx context.Context, sync, transport string, publishers int) (p published, err error) {
	dir := filepath.Join(b.dir, fmt.Sprint("publish-", next.Add(1)))
	err = askChild(ctx, &p, "publish", dir, sync, transport, strconv.Itoa(publishers), b.time.String())
	return p, err
}

// commands measures the yardsticks and the creates.
func (b *bench) commands(ctx context.Context, s *site) error {
	r := b.report

	// Rows that are compared run next to each other in each round.
	var hello, always, never, overHTTP, overNATS []load
	var ratios []float64
	add := func(list *[]load, measure func() (load, error)) error {
		l, err := measure()
		*list = append(*list, l)
		return err
	}
	raw := func(sync, transport string) func() (load, error) {
		return func() (load, error) {
			p, err := b.publish(ctx, sync, transport, clients)
			return load{rate: p.Rate, took: []time.Duration{p.P50, p.P50, p.P99}}, err
		}
	}
	r.part("Yardsticks")
	disk, err := fsyncs(b.dir, b.time)
	if err != nil {
		return err
	}
	r.add("append of 400 B and fsync, one after the other", perSecond(disk.rate), latencies(disk))
	for range b.rounds {
		for _, step := range []error{
			add(&hello, func() (load, error) { return b.helloWorld(ctx, clients) }),
			add(&overHTTP, func() (load, error) { return s.counted(ctx, clients, b.measured(), s.creators(s.keys, "", nil)) }),
			add(&always, raw("always", "pipe")),
			add(&always, raw("always", "tcp")),
			add(&never, raw("never", "tcp")),
			add(&overNATS, func() (load, error) { return s.counted(ctx, clients, b.measured(), s.natsCreators) }),
		} {
			if step != nil {
				return step
			}
		}
		ratios = append(ratios, overHTTP[len(overHTTP)-1].rate/hello[len(hello)-1].rate)
	}
	again, err := fsyncs(b.dir, b.time)
	if err != nil {
		return err
	}
	r.add("the same at the end of the rounds", perSecond(again.rate), latencies(again))
	h, raws, unsynced := middle(hello), middle(always), middle(never)
	b.helloRate, b.createRate = h.rate, middle(overHTTP).rate
	r.add("HTTP hello-world alone, 64 clients", perSecond(h.rate), latencies(h))
	r.add("raw JetStream publish, sync-always, 64 publishers", perSecond(raws.rate), fmt.Sprintf("best round %s", perSecond(best(always).rate)))
	r.add("raw JetStream publish, not synced, 64 publishers", perSecond(unsynced.rate), fmt.Sprintf("best round %s", perSecond(best(never).rate)))

	r.part("Create")
	for _, n := range []int{1, 16} {
		if err := b.rate(ctx, "create over HTTP, "+countClients(n), n, s.creators(s.keys, "", nil)); err != nil {
			return err
		}
	}
	c := middle(overHTTP)
	r.target("create over HTTP, 64 clients", perSecond(c.rate), percent(median(ratios))+" of hello-world; "+latencies(c),
		"13% of hello-world", median(ratios) >= barCreate)
	r.target("the same, compared with raw sync-always publish", perSecond(c.rate), fmt.Sprintf("%.2f times", c.rate/raws.rate),
		"above 1", c.rate > raws.rate)
	r.add("CPU time", micros(c.cpu), fmt.Sprintf("over NATS %s", micros(middle(overNATS).cpu)))
	half, err := paced(ctx, clients, c.rate/2, b.time, s.creators(s.keys, "", nil))
	if err != nil {
		return err
	}
	r.target("create over HTTP at half load", perSecond(half.rate), latencies(half), "p99 25 ms", half.quantile(.99) <= barCreateHalf)
	for _, n := range []int{1, 16} {
		if err := b.rate(ctx, "create over NATS, "+countClients(n), n, s.natsCreators); err != nil {
			return err
		}
	}
	n := middle(overNATS)
	r.add("create over NATS, 64 clients", perSecond(n.rate), percent(n.rate/h.rate)+" of hello-world; "+latencies(n))
	if b.wants("probe") {
		if err := b.rate(ctx, "create over HTTP with a real dry request, 64 clients", clients, s.creators(s.keys, probed, nil)); err != nil {
			return err
		}
	}
	return b.reopen(ctx, s)
}

func middle(l []load) load {
	rates := make([]float64, len(l))
	for i := range l {
		rates[i] = l[i].rate
	}
	m := median(rates)
	for _, x := range l {
		if x.rate == m {
			return x
		}
	}
	return load{}
}

func best(l []load) (best load) {
	for _, x := range l {
		if x.rate > best.rate {
			best = x
		}
	}
	return best
}

// reopen stops the service and has a new process decrypt everything that was acknowledged.
func (b *bench) reopen(ctx context.Context, s *site) error {
	if err := s.stop(); err != nil {
		return err
	}
	list := s.dir + ".acknowledged"
	if err := s.acknowledged(list); err != nil {
		return fmt.Errorf("write the list of the acknowledged: %w", err)
	}
	var out reopened
	if err := askChild(ctx, &out, "reopen", s.dir, list); err != nil {
		return err
	}
	result := fmt.Sprintf("%s of %s", thousands(int64(out.Opened)), thousands(int64(len(s.made))))
	b.report.target("acknowledged credentials that a new process can decrypt", result, "", "all", out.Opened == len(s.made) && out.Checked == len(s.made))
	for _, p := range out.Problems {
		b.report.note("%s", p)
	}
	return nil
}

// slowDisk repeats the creates with 1 ms more for each fsync.
func (b *bench) slowDisk(ctx context.Context, s *site) error {
	// A service that supports the variable logs a warning.
	if err := s.stop(); err != nil {
		return err
	}
	if !strings.Contains(s.lastLog, "every fsync is delayed") {
		b.report.add("create over HTTP", "not available", "the service does not know CREDSTREAM_BENCH_FSYNC_DELAY")
		return nil
	}
	if _, err := s.start(ctx); err != nil {
		return err
	}
	for _, n := range []int{1, 16, clients, 256} {
		if err := b.rate(ctx, "create over HTTP, "+countClients(n), n, s.creators(s.keys, "", nil)); err != nil {
			return err
		}
	}
	f, err := openFlows(s)
	if err != nil {
		return err
	}
	defer f.watch.nc.Close()
	many, err := f.credentials(ctx, flowCredentials)
	if err != nil {
		return err
	}
	if _, err := b.flowRates(ctx, f, many); err != nil {
		return err
	}
	return b.reopen(ctx, s)
}

// large measures what depends on the amount of data.
func (b *bench) large(ctx context.Context, s *site) error {
	r := b.report
	total := thousands(b.credentials)
	early, err := b.fill(ctx, s, b.part)
	if err != nil {
		return err
	}
	filled := time.Now()
	late, err := b.fill(ctx, s, b.credentials-b.part)
	if err != nil {
		return err
	}
	rate := float64(b.credentials-b.part) / (time.Since(filled) - b.settleTime()).Seconds()
	r.add("created over HTTP, 64 clients, without pause", perSecond(rate), "")
	if b.createRate == 0 {
		b.createRate = rate
	}
	if b.wants("memory") {
		per := func(a, b memory, n int64) float64 { return float64(b.total()-a.total()) / float64(n) }
		n := b.credentials - b.part
		settled := per(early[1], late[1], n)
		r.target("memory per credential, after a pause", fmt.Sprintf("%.2f KB", settled/1024),
			fmt.Sprintf("%s at %s, %s at %s", megabytes(early[1].total()), thousands(b.part), megabytes(late[1].total()), total),
			"1 KB", settled <= barMemory)
		hot := per(early[0], late[0], n)
		r.add("memory per credential, while writing", fmt.Sprintf("%.2f KB", hot/1024),
			fmt.Sprintf("%s, %s", megabytes(early[0].total()), megabytes(late[0].total())))
		r.note("Memory at the end: anonymous %s, files %s, shared %s.", megabytes(late[1].anon), megabytes(late[1].file), megabytes(late[1].shmem))
	}
	return nil
}

func (b *bench) settleTime() time.Duration {
	if b.wants("memory") {
		return b.settle
	}
	return 0
}

// fill creates n credentials and returns the memory use then and after a pause.
func (b *bench) fill(ctx context.Context, s *site, n int64) (m [2]memory, err error) {
	if _, err = closed(ctx, clients, size{calls: n}, s.creators(s.keys, "", nil)); err != nil {
		return m, err
	}
	if m[0], err = s.memory(); err != nil {
		return m, err
	}
	select {
	case <-time.After(b.settleTime()):
	case <-ctx.Done():
		return m, ctx.Err()
	}
	m[1], err = s.memory()
	return m, err
}

func (b *bench) get(ctx context.Context, s *site) error {
	var gets, ratios []float64
	var last load
	for range b.rounds {
		hello, err := b.helloWorld(ctx, clients)
		if err != nil {
			return err
		}
		if last, err = s.counted(ctx, clients, b.measured(), s.getters); err != nil {
			return err
		}
		gets, ratios = append(gets, last.rate), append(ratios, last.rate/hello.rate)
	}
	b.report.target("get over HTTP, 64 clients", perSecond(median(gets)), percent(median(ratios))+" of hello-world; "+latencies(last),
		"45% of hello-world", median(ratios) >= barGet)
	b.cost(last.cpu)
	return b.half(ctx, "get at half load", median(gets), s.getters)
}

// viewsStatus is the response of the views' status.
type viewsStatus struct {
	Position, End uint64
	Rebuilding    bool
	Rebuilt       uint64
	Error         string
}

func (b *bench) rebuild(ctx context.Context, s *site) error {
	admin, err := dialWire(s.proc.http)
	if err != nil {
		return err
	}
	defer admin.close()
	var rates []float64
	for range b.rounds {
		began := time.Now()
		if err := command(admin, adminKey, "default", "views.rebuild", struct{}{}, nil); err != nil {
			return err
		}
		var st viewsStatus
		for st.Rebuilding = true; st.Rebuilding; {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := query(admin, adminKey, "default", "views.status", &st); err != nil {
				return err
			}
		}
		if st.Error != "" || st.Rebuilt < st.End {
			return fmt.Errorf("the rebuild ended at %d of %d: %s", st.Rebuilt, st.End, st.Error)
		}
		rates = append(rates, float64(st.End)/time.Since(began).Seconds())
	}
	// The raw replay needs exclusive access to the folder.
	if err := s.stop(); err != nil {
		return err
	}
	list := filepath.Join(b.dir, "none")
	if err := (&site{}).acknowledged(list); err != nil {
		return fmt.Errorf("write the list of the acknowledged: %w", err)
	}
	var raw reopened
	if err := askChild(ctx, &raw, "reopen", s.dir, list); err != nil {
		return err
	}
	if _, err := s.start(ctx); err != nil {
		return err
	}
	b.report.add("raw replay: an ordered consumer that counts", perSecond(raw.Replay), "")
	ratio := median(rates) / raw.Replay
	b.report.target("views rebuilt from the log, events", perSecond(median(rates)), percent(ratio)+" of the raw replay", "30% of the raw replay", ratio >= barRebuild)
	return nil
}

func (b *bench) starts(ctx context.Context, s *site) error {
	start := func(stop func() error) (ready, answered time.Duration, err error) {
		if err := stop(); err != nil {
			return 0, 0, err
		}
		began := time.Now()
		if ready, err = s.start(ctx); err != nil {
			return 0, 0, err
		}
		one, err := s.getters(0)
		if err != nil {
			return 0, 0, err
		}
		defer one.close()
		if err := one.call(); err != nil {
			return 0, 0, err
		}
		return ready, time.Since(began), nil
	}
	row := func(what string, bar bool, times int, stop func() error) error {
		var readies, answers []float64
		for range times {
			ready, answered, err := start(stop)
			if err != nil {
				return err
			}
			readies, answers = append(readies, ready.Seconds()), append(answers, answered.Seconds())
		}
		result := fmt.Sprintf("%.2f s", median(readies))
		details := fmt.Sprintf("first get answered after %.2f s", median(answers))
		if bar {
			b.report.target(what, result, details, "3 s", median(answers) <= barStart.Seconds())
		} else {
			b.report.add(what, result, details)
		}
		return nil
	}
	if err := row("start until ready", true, b.rounds, s.stop); err != nil {
		return err
	}
	return row("start until ready after SIGKILL", false, 1, func() error {
		s.kill()
		return nil
	})
}

// listing is one kind of list request.
type listing struct {
	what, params string
	pages        int // pages of 200 to skip first
}

func listings(short bool) []listing {
	filters := []listing{
		{"all", "", 0},
		{"component", "&component=c3", 0},
		{"status unverified", "&status=unverified", 0},
		{"status verified", "&status=verified", 0},
		{"component, status", "&component=c3&status=unverified", 0},
		{"name contains many have", "&name_contains=prod", 0},
		{"name contains few have", "&name_contains=" + url.QueryEscape("orders crm 12"), 0},
		{"name contains two letters", "&name_contains=cr", 0},
		{"name contains nobody has", "&name_contains=xyzzy", 0},
		{"component, name contains", "&component=c3&name_contains=prod", 0},
		{"component, status, name contains few", "&component=c3&status=unverified&name_contains=" + url.QueryEscape("crm 9"), 0},
		{"far page", "", 5},
		{"far page, name contains", "&name_contains=prod", 3},
	}
	sorts := []string{"name", "-name", "created", "-created"}
	if short {
		sorts = sorts[1:3]
	}
	var all []listing
	for _, f := range filters {
		for _, s := range sorts {
			all = append(all, listing{f.what + ", by " + s, f.params + "&sort=" + s, f.pages})
		}
	}
	return all
}

func (b *bench) lists(ctx context.Context, s *site) error {
	// Some credentials are verified, so that a filter by status is selective.
	if _, err := closed(ctx, clients, size{calls: b.credentials / 50}, s.creators(s.keys, probed, nil)); err != nil {
		return err
	}
	if err := b.listsOf(ctx, s, s.keys, fmt.Sprintf("%s credentials, %d tenants", thousands(b.credentials), tenants)); err != nil {
		return err
	}
	if _, err := closed(ctx, clients, size{calls: b.credentials}, s.creators(s.big, "", nil)); err != nil {
		return err
	}
	if _, err := closed(ctx, 4, size{calls: b.credentials / 50}, s.creators(s.big, probed, nil)); err != nil {
		return err
	}
	return b.listsOf(ctx, s, s.big, fmt.Sprintf("one tenant of %s, %s in all", thousands(b.credentials), thousands(2*b.credentials)))
}

// listed is a listing with its results.
type listed struct {
	listing
	most float64       // per second, with 64 clients
	cpu  time.Duration // of the service for one page
	half load
}

// listsOf tries every listing for a short time, then measures the slowest ones at full length, and
// reports the slowest of them.
func (b *bench) listsOf(ctx context.Context, s *site, of []apiKey, where string) error {
	measure := func(w listing, d time.Duration) (l listed, err error) {
		defer func() {
			if err != nil {
				err = fmt.Errorf("%s: %w", w.what, err)
			}
		}()
		open, err := s.listers(of, w)
		if err != nil {
			return l, err
		}
		most, err := s.counted(ctx, clients, size{warm: d / 4, time: d}, open)
		if err != nil {
			return l, err
		}
		half, err := paced(ctx, clients, most.rate/2, d, open)
		fmt.Fprintf(b.report.out, "    %-50s %10s  half load: %s\n", w.what, perSecond(most.rate), latencies(half))
		return listed{w, most.rate, most.cpu, half}, err
	}
	var all []listed
	for _, w := range listings(b.short) {
		l, err := measure(w, b.time/5)
		if err != nil {
			return err
		}
		all = append(all, l)
	}
	typical, err := measure(all[0].listing, b.time)
	if err != nil {
		return err
	}
	b.report.target("list page of 50 ("+where+")", perSecond(typical.most), "at half load "+latencies(typical.half), "p99 5 ms", typical.half.quantile(.99) <= barPageHalf)
	b.report.target("CPU time", micros(typical.cpu), "", "250 µs", typical.cpu <= barPage)
	slices.SortStableFunc(all, func(x, y listed) int { return cmp.Compare(y.half.quantile(.99), x.half.quantile(.99)) })
	again := slices.Clone(all[:slowest])
	slices.SortStableFunc(all, func(x, y listed) int { return cmp.Compare(x.most, y.most) })
	worst := typical
	for _, l := range append(again, all[:slowest]...) {
		if l, err = measure(l.listing, b.time); err != nil {
			return err
		}
		if l.half.quantile(.99) > worst.half.quantile(.99) {
			worst = l
		}
	}
	b.report.target(fmt.Sprintf("the slowest of %d filters and sorts", len(all)), "p99 "+ms(worst.half.quantile(.99)),
		fmt.Sprintf("%s: %s, at half load %s", worst.what, perSecond(worst.most), latencies(worst.half)),
		"p99 10 ms", worst.half.quantile(.99) <= barList)
	return nil
}

// slowest is the number of listings that are measured again: those with the longest p99, and as many
// with the lowest rate.
const slowest = 4

// listers returns clients that request one page, the same for each tenant.
func (s *site) listers(of []apiKey, w listing) (func(int) (caller, error), error) {
	after := map[string]string{}
	if w.pages > 0 {
		c, err := dialWire(s.proc.http)
		if err != nil {
			return nil, err
		}
		defer c.close()
		for _, k := range of {
			if _, known := after[k.tenant]; known {
				continue
			}
			var page struct{ Next string }
			for range w.pages {
				what := "credential.list?limit=200" + w.params + "&after=" + url.QueryEscape(page.Next)
				if page.Next == "" {
					what = "credential.list?limit=200" + w.params
				}
				page.Next = ""
				if err := query(c, k.key, k.tenant, what, &page); err != nil {
					return nil, err
				}
			}
			after[k.tenant] = page.Next
		}
	}
	requests := make([][]byte, len(of))
	for i, k := range of {
		target := "/v1/tenants/" + k.tenant + "/credential.list?limit=50" + w.params
		if next := after[k.tenant]; next != "" {
			target += "&after=" + url.QueryEscape(next)
		}
		requests[i] = getRequest(nil, target, k.key)
	}
	return overHTTP(s.proc.http, func(_ int, c *wire) func() error {
		return func() error { return c.expect(200, "list", requests[rand.IntN(len(requests))]) } //nolint:gosec // a choice, not a secret
	}), nil
}

// feed measures the time from the response to a create until a plain NATS subscriber has its event.
// Both times are taken in this process.
func (b *bench) feed(ctx context.Context, s *site) error {
	nc, err := nats.Connect(s.proc.nats, nats.UserInfo("bench", adminKey))
	if err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	defer nc.Close()
	rate := b.createRate / 2
	calls := int(rate * b.time.Seconds())
	first := next.Load() + 1
	acked, seen := make([]atomic.Int64, calls+1), make([]atomic.Int64, calls+1)
	var arrived atomic.Int64
	began := time.Now()
	note := func(times []atomic.Int64, n uint64) bool {
		i := int64(n) - int64(first)
		return i >= 0 && i < int64(len(times)) && times[i].CompareAndSwap(0, int64(time.Since(began)))
	}
	sub, err := nc.Subscribe("credstream.events.*.>", func(m *nats.Msg) {
		if id := m.Header["ce-commandid"]; len(id) == 1 && note(seen, numberOf(id[0])) {
			arrived.Add(1)
		}
	})
	if err == nil {
		err = sub.SetPendingLimits(-1, -1)
	}
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	l, err := paced(ctx, clients, rate, b.time, s.creators(s.keys, "", func(n uint64) { note(acked, n) }))
	if err != nil {
		return err
	}
	for wait := time.Now(); arrived.Load() < int64(calls) && time.Since(wait) < 10*time.Second; {
		time.Sleep(10 * time.Millisecond)
	}
	var took []time.Duration
	for i := range calls {
		if a, z := acked[i].Load(), seen[i].Load(); a > 0 && z > 0 {
			took = append(took, time.Duration(max(0, z-a)))
		}
	}
	after := summed([][]time.Duration{took}, b.time)
	b.report.target("from the response to a subscriber, at half load", latencies(after),
		fmt.Sprintf("%s of %s events, creates at %s", thousands(int64(len(took))), thousands(int64(calls)), perSecond(l.rate)),
		"p99 25 ms, all", after.quantile(.99) <= barFeed && len(took) == calls)
	return nil
}
