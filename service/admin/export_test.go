package admin

// ClearMembers is clearMembers.
var ClearMembers = clearMembers
