-- drop_references: delete the references to images that a worker could not read from the image store. The next pull of a
-- job with these images parks the job, and its controller stores the images again.
-- ARGV: digest...
-- Uses shared/base.lua: key.
for _, digest in ipairs(ARGV) do redis.call('DEL', key('ref', digest)) end
