package jetstream

// TailCommits is how many commits a tail holds for slow followers.
const TailCommits = tailCommits
