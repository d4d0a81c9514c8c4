package admin

// ClearMembers is clearMembers.
var ClearMembers = clearMembers

// Since is the messages that l keeps from a log sequence on, and the last sequence they cover.
func (l *Live) Since(from uint64) (places [][2]uint64, last uint64) {
	messages, last := l.since(from)
	for _, m := range messages {
		places = append(places, [2]uint64{m.LogSeq, uint64(m.LogIndex)})
	}
	return places, last
}
